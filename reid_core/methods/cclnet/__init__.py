"""CCLNet: unsupervised visible-infrared re-identification."""
