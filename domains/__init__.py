"""The modalities xdistill knows, one folder each, all of one shape."""
