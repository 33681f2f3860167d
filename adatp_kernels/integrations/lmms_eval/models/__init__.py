"""One file per model: each imports a class of the harness, and with it what that class needs."""
