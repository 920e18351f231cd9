"""One experiment a file: `get_config([argument])` returns everything the run is made of."""
