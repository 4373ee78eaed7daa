"""Machine descriptions, one .toml each; read by ``hwq.target``."""
