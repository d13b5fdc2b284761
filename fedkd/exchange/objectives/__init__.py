"""The objectives of stage 5, by what they look at; `fedkd.exchange.distill` is their table."""
