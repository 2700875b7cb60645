from consistentee.training.decoder import (
    tokens_for_heads as tokens_for_heads,
)
from consistentee.training.decoder import (
    train_branches as train_branches,
)
from consistentee.training.decoder import (
    train_exits as train_exits,
)
from consistentee.training.decoder import (
    train_last_token_exit as train_last_token_exit,
)
from consistentee.training.decoder import (
    train_learned_head as train_learned_head,
)
from consistentee.training.encoder import (
    cached_rows as cached_rows,
)
from consistentee.training.encoder import (
    depth_weighted_loss as depth_weighted_loss,
)
from consistentee.training.encoder import (
    distillation_loss as distillation_loss,
)
from consistentee.training.encoder import (
    early_exits as early_exits,
)
from consistentee.training.encoder import (
    hold_out as hold_out,
)
from consistentee.training.encoder import (
    layer_losses as layer_losses,
)
from consistentee.training.encoder import (
    recorded_features as recorded_features,
)
from consistentee.training.encoder import (
    recorded_logits as recorded_logits,
)
from consistentee.training.encoder import (
    steps_of as steps_of,
)
from consistentee.training.encoder import (
    token_stage as token_stage,
)
from consistentee.training.encoder import (
    train_heads as train_heads,
)
from consistentee.training.encoder import (
    train_jointly as train_jointly,
)
from consistentee.training.encoder import (
    train_jointly_on as train_jointly_on,
)
from consistentee.training.encoder import (
    train_last_exit as train_last_exit,
)
from consistentee.training.encoder import (
    train_last_exit_on as train_last_exit_on,
)
from consistentee.training.encoder import (
    training_source as training_source,
)
from consistentee.training.loop import run_stage as run_stage
from consistentee.training.sources import (
    FeatureBatch as FeatureBatch,
)
from consistentee.training.sources import (
    FeatureSource as FeatureSource,
)
from consistentee.training.sources import (
    StateBatch as StateBatch,
)
from consistentee.training.sources import (
    TokenBatch as TokenBatch,
)
from consistentee.training.sources import (
    TokenSource as TokenSource,
)
from consistentee.training.stage import Stage as Stage
from consistentee.training.token_answers import exit_answers as exit_answers
