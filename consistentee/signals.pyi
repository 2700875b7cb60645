from consistentee.rules.signals import (
    Signal as Signal,
    entropy as entropy,
    entropy_thresholds as entropy_thresholds,
    even_log_odds as even_log_odds,
    falling_fractions as falling_fractions,
    head_probability as head_probability,
    margin as margin,
    normalised_entropy as normalised_entropy,
    top_probability as top_probability,
)
