"""The Hydra tree of `xdistill fit`: fit.yaml and one folder a group; comments are what `--help` prints."""
