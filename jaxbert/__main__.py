"""``python -m jaxbert`` is the command ``jaxbert``."""

from jaxbert.cli.main import main

if __name__ == "__main__":
    main()
