from consistentee.rules.signals import (
    Signal as Signal,
)
from consistentee.rules.signals import (
    entropy as entropy,
)
from consistentee.rules.signals import (
    entropy_thresholds as entropy_thresholds,
)
from consistentee.rules.signals import (
    even_log_odds as even_log_odds,
)
from consistentee.rules.signals import (
    falling_fractions as falling_fractions,
)
from consistentee.rules.signals import (
    head_probability as head_probability,
)
from consistentee.rules.signals import (
    margin as margin,
)
from consistentee.rules.signals import (
    normalised_entropy as normalised_entropy,
)
from consistentee.rules.signals import (
    top_probability as top_probability,
)
