"""`python -m awq_edge`: the command line."""

from awq_edge.cli import main

if __name__ == "__main__":
    main()
