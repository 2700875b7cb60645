from consistentee.backbones.token_exits import TokenExitStepper as TokenExitStepper
from consistentee.data.instances import Split as Split
from consistentee.data.instances import TaskData as TaskData
from consistentee.data.prompts import Prompt as Prompt
from consistentee.data.prompts import PromptSplit as PromptSplit
from consistentee.data.prompts import TextTask as TextTask
from consistentee.deployment.pipeline import pipeline as pipeline
from consistentee.deployment.risk_control import control_risk as control_risk
from consistentee.engine.classify import Predictions as Predictions
from consistentee.engine.classify import classify as classify
from consistentee.engine.generate import (
    Generations as Generations,
)
from consistentee.engine.generate import (
    generate as generate,
)
from consistentee.engine.generate import (
    generate_encoded as generate_encoded,
)
from consistentee.engine.generate import (
    stream_texts as stream_texts,
)
from consistentee.engine.speculation import generate_speculatively as generate_speculatively
from consistentee.engine.step.read_prompts import ReadPrompts as ReadPrompts
from consistentee.engine.step.sampling import Sampling as Sampling
from consistentee.errors import UserError as UserError
from consistentee.methods.method import (
    JointMethod as JointMethod,
)
from consistentee.methods.method import (
    Knob as Knob,
)
from consistentee.methods.method import (
    Method as Method,
)
from consistentee.methods.method import (
    TokenMethod as TokenMethod,
)
from consistentee.methods.method import (
    available_methods as available_methods,
)
from consistentee.methods.method import (
    get_method as get_method,
)
from consistentee.methods.token_methods import DraftingMethod as DraftingMethod
from consistentee.methods.token_methods import VocabularyMethod as VocabularyMethod
from consistentee.models.classifiers import (
    CLASSIFIER_KINDS as CLASSIFIER_KINDS,
)
from consistentee.models.classifiers import (
    ClassifierSpec as ClassifierSpec,
)
from consistentee.models.classifiers import (
    InternalClassifier as InternalClassifier,
)
from consistentee.models.decoder.branches import BranchSpec as BranchSpec
from consistentee.models.decoder.multi_exit_decoder import MultiExitDecoder as MultiExitDecoder
from consistentee.models.decoder.stack import DecoderStack as DecoderStack
from consistentee.models.decoder.sublayers import SkippedSublayers as SkippedSublayers
from consistentee.models.encoder.multi_exit_model import MultiExitModel as MultiExitModel
from consistentee.models.heads import HeadSpec as HeadSpec
from consistentee.rules.exit_rule import (
    ConsecutiveRule as ConsecutiveRule,
)
from consistentee.rules.exit_rule import (
    ExitRule as ExitRule,
)
from consistentee.rules.exit_rule import (
    NeverExit as NeverExit,
)
from consistentee.rules.exit_rule import (
    OneLayerRule as OneLayerRule,
)
from consistentee.rules.exit_rule import (
    SameAnswerRule as SameAnswerRule,
)
from consistentee.rules.exit_rule import (
    State as State,
)
from consistentee.rules.exit_rule import (
    StaticRule as StaticRule,
)
from consistentee.rules.exit_rule import (
    ThresholdRule as ThresholdRule,
)
from consistentee.rules.view import LayerView as LayerView
from consistentee.rules.vocabulary import prune_vocabulary as prune_vocabulary
from consistentee.traces.instance_trace import Trace as Trace
from consistentee.traces.instance_trace import record_trace as record_trace
from consistentee.traces.token_trace import (
    TokenTrace as TokenTrace,
)
from consistentee.traces.token_trace import (
    record_token_trace as record_token_trace,
)
from consistentee.traces.token_trace import (
    record_tokens as record_tokens,
)
from consistentee.traces.walk import (
    replay as replay,
)
from consistentee.traces.walk import (
    replay_tokens as replay_tokens,
)
from consistentee.traces.walk import (
    sweep as sweep,
)
from consistentee.traces.walk import (
    sweep_tokens as sweep_tokens,
)
from consistentee.training.recipe import Recipe as Recipe
from consistentee.training.recipe import TokenRecipe as TokenRecipe

__version__: str
