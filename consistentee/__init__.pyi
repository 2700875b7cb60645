from consistentee.backbones.token_exits import TokenExitStepper as TokenExitStepper
from consistentee.data.tasks import (
    Prompt as Prompt,
    PromptSplit as PromptSplit,
    Split as Split,
    TaskData as TaskData,
    TextTask as TextTask,
)
from consistentee.deployment.accelerate import Accelerated as Accelerated, accelerate as accelerate
from consistentee.deployment.pipeline import load as load, pipeline as pipeline
from consistentee.deployment.risk_control import control_risk as control_risk
from consistentee.engine.classify import Predictions as Predictions, classify as classify
from consistentee.engine.generate import (
    Generations as Generations,
    generate as generate,
    generate_encoded as generate_encoded,
)
from consistentee.engine.sampling import Sampling as Sampling
from consistentee.engine.speculation import (
    DraftedTexts as DraftedTexts,
    generate_speculatively as generate_speculatively,
    generate_with_stock_drafts as generate_with_stock_drafts,
)
from consistentee.engine.token_batch import ReadPrompts as ReadPrompts
from consistentee.errors import UserError as UserError
from consistentee.methods.method import (
    JointMethod as JointMethod,
    Knob as Knob,
    Method as Method,
    available_methods as available_methods,
    get_method as get_method,
)
from consistentee.methods.token_methods import (
    DraftedBy as DraftedBy,
    DraftingMethod as DraftingMethod,
    TokenMethod as TokenMethod,
    VocabularyMethod as VocabularyMethod,
)
from consistentee.models.base import HeadSpec as HeadSpec, chosen_device as chosen_device
from consistentee.models.classifiers import (
    CLASSIFIER_KINDS as CLASSIFIER_KINDS,
    ClassifierSpec as ClassifierSpec,
    ExitPlace as ExitPlace,
    InternalClassifier as InternalClassifier,
    LinearClassifier as LinearClassifier,
    ReadableLayer as ReadableLayer,
)
from consistentee.models.decoder.branches import BranchSpec as BranchSpec, SkippedSublayers as SkippedSublayers
from consistentee.models.decoder.multi_exit_decoder import (
    DecoderStack as DecoderStack,
    MultiExitDecoder as MultiExitDecoder,
)
from consistentee.models.encoder import MultiExitModel as MultiExitModel, add_companion as add_companion
from consistentee.rules.exit_rule import (
    ConsecutiveRule as ConsecutiveRule,
    ExitRule as ExitRule,
    NeverExit as NeverExit,
    SameAnswerRule as SameAnswerRule,
    SomeLayersRule as SomeLayersRule,
    State as State,
    StaticRule as StaticRule,
    ThresholdRule as ThresholdRule,
)
from consistentee.rules.view import LayerView as LayerView
from consistentee.rules.vocabulary import prune_vocabulary as prune_vocabulary
from consistentee.traces.instance_trace import Trace as Trace, record_trace as record_trace
from consistentee.traces.token_trace import TokenTrace as TokenTrace, record_tokens as record_tokens
from consistentee.traces.token_view import token_key as token_key
from consistentee.traces.walk import replay as replay, sweep as sweep
from consistentee.training.recipe import Recipe as Recipe, TokenRecipe as TokenRecipe

__version__: str
