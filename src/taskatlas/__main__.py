"""``python -m taskatlas`` is the command ``taskatlas``."""

from taskatlas.cli import main

if __name__ == "__main__":
    main()
