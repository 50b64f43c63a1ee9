"""The class of every error that the user can mend; the programs catch it and say it in one line."""

from __future__ import annotations


class OneNetError(Exception):
    """Something is wrong with what the user gave; the message says what, where, and what to do.

    Attributes:
        exit_status: of a program that ends with it.
    """

    exit_status = 2
