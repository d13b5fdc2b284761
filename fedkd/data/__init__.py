"""Where samples come from: data sets, their split among clients, and the shared proxy."""
