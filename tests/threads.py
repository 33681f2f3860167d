"""Work that another thread does."""

import threading


def in_a_thread(work):
    """A thread that runs `work()`, and a list that holds its result or its error once it has ended."""
    outcome = []

    def run():
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome
