"""One YAML file for each experiment; read them, copy them, change them."""
