"""Where other people's software meets the package; nothing else in the package imports from here."""
