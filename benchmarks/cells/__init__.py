"""The cells of clip_vs_vqvae.py: what decoders are given to see, how they are trained and asked, and their page."""
