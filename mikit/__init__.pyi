"""The public names of mikit. The lazy loader, type checkers and the documentation all read this list."""

from . import (
    activations as activations,
    adapters as adapters,
    bench as bench,
    critics as critics,
    datasets as datasets,
    distillation as distillation,
    estimators as estimators,
    experiments as experiments,
    flow as flow,
    functional as functional,
    measuring as measuring,
    models as models,
    plot as plot,
    reporting as reporting,
    testing as testing,
)
from .activations import (
    ActivationStore as ActivationStore,
    Recorder as Recorder,
    capture as capture,
    phase_schedule as phase_schedule,
    read_array as read_array,
    record_activations as record_activations,
)
from .core.errors import (
    InputError as InputError,
)
from .core.measurement import (
    Check as Check,
    Measurement as Measurement,
)
from .distillation import (
    CRD as CRD,
    DKD as DKD,
    KD2M as KD2M,
    MIMKD as MIMKD,
    PKT as PKT,
    AttentionTransfer as AttentionTransfer,
    ChannelMMD as ChannelMMD,
    FitNet as FitNet,
    HintonKD as HintonKD,
    InformationFlow as InformationFlow,
    LayerPairs as LayerPairs,
    check_optimizer as check_optimizer,
)
from .estimators import (
    CKA as CKA,
    DV as DV,
    HSIC as HSIC,
    JSD as JSD,
    KSG as KSG,
    MMD as MMD,
    NWJ as NWJ,
    QMI as QMI,
    SMILE as SMILE,
    VID as VID,
    AnchoredInfoNCE as AnchoredInfoNCE,
    Auto as Auto,
    CopulaCritic as CopulaCritic,
    EnergyDistance as EnergyDistance,
    Estimator as Estimator,
    FlowMI as FlowMI,
    GaussianKL as GaussianKL,
    GaussianMI as GaussianMI,
    GaussianWasserstein as GaussianWasserstein,
    GromovWasserstein as GromovWasserstein,
    InfoNCE as InfoNCE,
    LabelHSIC as LabelHSIC,
    LabelInformation as LabelInformation,
    LabelQMI as LabelQMI,
    PlugIn as PlugIn,
    ReducedKSG as ReducedKSG,
    Ross as Ross,
    SinkhornDivergence as SinkhornDivergence,
    SlicedWasserstein as SlicedWasserstein,
    Training as Training,
    Wasserstein as Wasserstein,
    WeightedKL as WeightedKL,
)
from .flow import (
    Flow as Flow,
    match_layers as match_layers,
    suggest_pairs as suggest_pairs,
    trace as trace,
)
from .measuring.noise import (
    NoiseSweep as NoiseSweep,
    noise_sweep as noise_sweep,
)
from .measuring.pipeline import (
    measure as measure,
)
from .measuring.risk import (
    RiskGap as RiskGap,
    risk_gap as risk_gap,
)
from .measuring.two_axes import (
    BothAxes as BothAxes,
    both_axes as both_axes,
)
from .reporting import (
    report as report,
)

__version__: str
__all__: list[str]
