"""Decoding: the one way text and pictures are generated, in training, evaluation, the command line and the server."""
