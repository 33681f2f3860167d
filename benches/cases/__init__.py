"""The cases that are timed, a file an operation: their inputs, their variants, what they must move and compute, what is right."""
