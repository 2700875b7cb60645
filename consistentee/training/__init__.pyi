from consistentee.progress import tracked as tracked
from consistentee.training.branches import train_branches as train_branches
from consistentee.training.decoder import (
    StateBatch as StateBatch,
    exit_answers as exit_answers,
    train_exits as train_exits,
    train_last_token_exit as train_last_token_exit,
    train_learned_head as train_learned_head,
    training_rows as training_rows,
)
from consistentee.training.encoder import (
    FeatureBatch as FeatureBatch,
    FeatureSource as FeatureSource,
    TokenBatch as TokenBatch,
    TokenSource as TokenSource,
    cached_rows as cached_rows,
    depth_weighted_loss as depth_weighted_loss,
    distillation_loss as distillation_loss,
    early_exits as early_exits,
    exit_distribution as exit_distribution,
    hold_out as hold_out,
    layer_losses as layer_losses,
    recorded_logits as recorded_logits,
    steps_of as steps_of,
    student_loss as student_loss,
    token_stage as token_stage,
    train_early_exits as train_early_exits,
    train_heads as train_heads,
    train_jointly as train_jointly,
    train_last_exit as train_last_exit,
    training_source as training_source,
    use_exit_network as use_exit_network,
    validation_source as validation_source,
)
from consistentee.training.loop import (
    Stage as Stage,
    compute_once as compute_once,
    count_rows as count_rows,
    counting_rows_as as counting_rows_as,
    run_stage as run_stage,
)
from consistentee.training.recipe import ExitNetwork as ExitNetwork, ExitWeights as ExitWeights
