"""A sweep shared out: its manifest, who trains what, how it stands."""
