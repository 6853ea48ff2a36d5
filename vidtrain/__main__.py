"""`python -m vidtrain` and `torchrun … -m vidtrain`."""

from vidtrain.cli import main

if __name__ == "__main__":
    main()
