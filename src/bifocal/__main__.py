"""`python -m bifocal` is the same program as `bifocal`."""

from bifocal.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
