"""The scores of stage 1, by what they do; `fedkd.exchange.score` is their table.

Each fits a state on private samples x [n, d] with labels y [n], draws from a generator, and may
look at `public` [p, d], what others put into the proxy pool, if `needs_public` says so. A score is
float64 [m], higher is stranger; only its order and its quantiles matter.
"""
