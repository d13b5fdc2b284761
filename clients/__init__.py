"""The Flower ClientApp: decode, call pure functions, encode."""
