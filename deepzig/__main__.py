"""`python -m deepzig` runs the command `deepzig`."""

from deepzig.cli import main

if __name__ == "__main__":
    main(prog_name="deepzig")
