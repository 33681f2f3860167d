"""What goes wrong with a user's files and words, as opposed to with the program."""


class DemoError(Exception):
    """A mistake of the user's that one line explains; the command line prints it and exits with 2."""
