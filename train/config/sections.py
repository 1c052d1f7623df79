"""The configuration of one run: types and documentation here, values in `configs/`.

Every class is one section, every attribute docstring is the help text of its key. Where a group has options with keys of their
own, the section is a union and its `name` tells which.
"""

import dataclasses
import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from parallel.context.names import Method, PartitionName
from parallel.layout import Layout
from parallel.shape import ModelShape
from schedulers.batch import BatchWarmup
from schedulers.decay import ShapeName, WarmupName

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False)

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CorpusConfig:
    """What every corpus has."""

    cache_dir: str
    """where tokenised shards are kept, one folder per content hash"""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    """share of the documents held out for validation (of each document's tail where there are too few documents)"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StdlibCorpusConfig(CorpusConfig):
    """The Python standard library's own source text, found on this machine: a real corpus that needs no network."""

    name: Literal["stdlib"]
    """which corpus"""
    include_tests: bool
    """also the standard library's test folders (about 2.6 times the text)"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FilesCorpusConfig(CorpusConfig):
    """Text files of your own."""

    name: Literal["files"]
    """which corpus"""
    files: list[str]
    """globs of .txt, .jsonl, .jsonl.zst and .parquet files"""
    text_column: str
    """the field (JSON lines) or column (Parquet) that holds the text"""
    document_separator: str | None
    """splits a .txt into documents; null: one file is one document"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BpeTokenizerConfig:
    """Byte-level BPE trained on the corpus."""

    name: Literal["bpe"]
    """which tokenizer"""
    vocab_size: Annotated[int, Field(ge=257)]
    """entries: 256 bytes, the end-of-text token, the merges"""
    train_bytes: PositiveInt
    """train on at most this many bytes from the start of the corpus"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BytesTokenizerConfig:
    """Plain bytes: token i is byte i, token 256 is the end of a text."""

    name: Literal["bytes"]
    """which tokenizer"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FileTokenizerConfig:
    """Any tokenizer.json of the `tokenizers` library."""

    name: Literal["file"]
    """which tokenizer"""
    path: str
    """the tokenizer.json"""
    end_of_text: str
    """the token appended to every document; it must be in the vocabulary"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig:
    """A Llama-family decoder."""

    num_layers: PositiveInt
    """transformer blocks"""
    hidden_size: PositiveInt
    """width of the residual stream"""
    num_heads: PositiveInt
    """query heads"""
    num_kv_heads: PositiveInt
    """key and value heads (grouped-query attention); null: num_heads"""
    head_dim: Annotated[int, Field(gt=0, multiple_of=2)]
    """width of one head; null: hidden_size / num_heads"""
    ffn_size: PositiveInt
    """width inside the feed-forward"""
    vocab_size: PositiveInt
    """rows of the embedding and of the head; at least the tokenizer's"""
    ffn: Literal["swiglu", "gelu"]
    """kind of feed-forward"""
    tie_embeddings: bool
    """use the embedding table as the head"""
    qk_norm: bool
    """RMSNorm on queries and keys, per head"""
    rope_theta: Annotated[float, Field(gt=0)]
    """base of the rotary embedding"""
    norm_eps: Annotated[float, Field(gt=0)]
    """epsilon of RMSNorm"""
    init_std: Annotated[float, Field(gt=0)]
    """standard deviation of initial weights (those into the residual stream: / sqrt(2 num_layers); see optimizer.mup)"""
    embedding_multiplier: Annotated[float, Field(gt=0)]
    """times the embedding's output; null: 1, with optimizer.mup 12"""
    residual_multiplier: Annotated[float, Field(gt=0)]
    """times what attention and feed-forward add to the residual stream; null: 1, with optimizer.mup 1.4 / sqrt(num_layers)"""
    attention_multiplier: Annotated[float, Field(gt=0)]
    """times the products of queries and keys; null: 1 / sqrt(head_dim), with optimizer.mup 1 / head_dim"""
    logit_multiplier: Annotated[float, Field(gt=0)]
    """times the logits; null: 1, with optimizer.mup mup_base_width / hidden_size"""
    initial_weights: str | None
    """start from the weights in this folder (Hugging Face's format, Llama or Qwen3) instead of random ones; null: random"""

    @property
    def shape(self) -> ModelShape:
        """The plain record that layouts and the planner use."""
        names = [field.name for field in dataclasses.fields(ModelShape)]
        return ModelShape(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AdamConfig:
    """What every optimizer has: AdamW for what it does not treat itself. Norms and embeddings are not decayed."""

    beta1: Annotated[float, Field(ge=0, lt=1)]
    """decay of the first moment"""
    beta2: Annotated[float, Field(ge=0, lt=1)]
    """decay of the second moment"""
    eps: Annotated[float, Field(gt=0)]
    """added to the root of the second moment"""
    weight_decay: NonNegativeFloat
    """decoupled weight decay, times the learning rate"""
    clip_norm: Annotated[float, Field(gt=0)]
    """gradients are scaled down to this l2 norm"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AdamWConfig(AdamConfig):
    """AdamW."""

    name: Literal["adamw"]
    """which optimizer"""
    mup: bool
    """muP: multipliers, initial weights and learning rates such that one schedule.peak serves every hidden_size"""
    mup_base_width: PositiveInt
    """the hidden_size at which muP's widths count as 1"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MuonConfig(AdamConfig):
    """Muon for the matrices of the blocks, with updates as large as AdamW's; AdamW for the rest."""

    name: Literal["muon"]
    """which optimizer"""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """of the gradients, before they are orthogonalised"""
    nesterov: bool
    """Nesterov's form of that momentum"""
    iterations: PositiveInt
    """Newton-Schulz iterations"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WarmupConfig:
    """What every schedule has."""

    peak: Annotated[float, Field(gt=0)]
    """the largest learning rate"""
    warmup_tokens: Annotated[int, Field(ge=0)]
    """tokens of warmup"""
    warmup_shape: WarmupName
    """how it rises"""
    warmup_start: Annotated[float, Field(ge=0, le=1)]
    """where it starts, as a share of the rate it rises to"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ConstantScheduleConfig(WarmupConfig):
    """Warmup, then constant."""

    name: Literal["constant"]
    """which schedule"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CosineScheduleConfig(WarmupConfig):
    """Warmup, then a cosine over all the rest."""

    name: Literal["cosine"]
    """which schedule"""
    floor: NonNegativeFloat
    """learning rate at the last step"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DecayConfig(WarmupConfig):
    """What the schedules have whose decay stands at the end."""

    floor: NonNegativeFloat
    """learning rate at the end of a decay"""
    decay_fraction: Annotated[float, Field(ge=0, le=1)]
    """share of all tokens (wsd_s: of each period) spent decaying, at the end"""
    decay_shape: ShapeName
    """how it falls"""
    decay_residue: Annotated[float, Field(gt=0, lt=1)]
    """exponential and inverse_proportional never reach zero: with a floor lower than this share of the rate where the decay
    begins, they are followed down to this share, which is taken off evenly"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WsdScheduleConfig(DecayConfig):
    """Warmup, a stable stretch, decay."""

    name: Literal["wsd"]
    """which schedule"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PowerScheduleConfig(DecayConfig):
    """Warmup, then min(peak, batch_tokens / 4096 * a * tokens^b), decay from where that stands."""

    name: Literal["power"]
    """which schedule"""
    a: Annotated[float, Field(gt=0)]
    """factor of the power law"""
    b: Annotated[float, Field(lt=0)]
    """exponent of the power law"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WsdSScheduleConfig(DecayConfig):
    """Several decays on one path, each followed by a jump back to the peak."""

    name: Literal["wsd_s"]
    """which schedule"""
    ends: list[PositiveInt] | None
    """tokens at which the decays end, whole steps (the run's end is added); null: a quarter, half and the whole of the run"""


BITS = (1.0, 1.58, 2.0, 3.0, 4.0, 6.0, 8.0)
"""The widths that there are quantizers for."""


def _bits(value: Any) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool) or float(value) not in BITS:
        raise ValueError(f"there are quantizers for {', '.join(f'{bits:g}' for bits in BITS)} bits")
    return float(value)


def _group(value: Any) -> Any:
    if value != "row" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("type row, or how many columns share a scale, such as 64")
    return value


def _start(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "auto" and not (number and 0 <= value < 1):
        raise ValueError("type auto, or the share of the tokens before quantization, from 0 to below 1")
    return float(value) if number else value


Bits = Annotated[float, BeforeValidator(_bits)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class NoQuantConfig:
    """Full precision."""

    name: Literal["none"]
    """which kind of low-precision weights"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class QatConfig:
    """Quantization-aware training: full precision first, then quantized weights with learned scales."""

    name: Literal["qat"]
    """which kind of low-precision weights"""
    bits: Bits
    """width of the weights: 1, 1.58 (ternary), 2, 3, 4, 6 or 8"""
    group: Annotated[int | Literal["row"], BeforeValidator(_group)]
    """what shares a scale: row, or so many columns of a row"""
    embedding_bits: Bits
    """the embedding and the head have at least this width"""
    activation_bits: Literal[8] | None
    """8: the inputs of the blocks' linears are rounded to 8 bits, one scale per token; null: they are left alone"""
    start: Annotated[float | Literal["auto"], BeforeValidator(_start)]
    """share of the run's tokens before the weights are quantized; auto: 1 - f* of the compute-optimal QAT paper"""
    fuse_decay: bool
    """true: the learning rate decays once, while the weights are quantized; false: it decays in full precision as the schedule
    has it, then rises and decays again"""
    rewarm_fraction: Annotated[float, Field(ge=0, lt=1)]
    """without fuse_decay: share of the quantized tokens over which the rate rises again; the rest of them is its decay"""
    rewarm_peak: Annotated[float, Field(gt=0)] | None
    """without fuse_decay: the rate that it rises to; null: schedule.peak"""
    scale_floor: Annotated[float, Field(gt=0)]
    """no scale counts as less"""
    scale_learning_rate: Annotated[float, Field(gt=0)]
    """learning rate of the scales, times the weight's over the largest level: at 1 a step moves no quantized value further
    through its scale than through its weight"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunConfig:
    """Identity of the run and its place on disk."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """a run lies in <run.dir>/<run.name>"""
    dir: str
    """folder of all runs"""
    seed: Annotated[int, Field(ge=0)]
    """seed of initial weights and data order"""
    resume: str
    """auto: a finished run of this name shows its table, an unfinished one goes on from its newest checkpoint that verifies;
    never: an existing name is refused; a checkpoint's folder: go on from that one"""
    resume_force: bool
    """go on even where the configuration has changed what the run computes"""
    trunk: str | None
    """go on from this checkpoint of another run, with another schedule, length or data (see foretrain branch); null: from the
    beginning"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainConfig:
    """The length and the arithmetic of training."""

    tokens: PositiveInt | None
    """train on this many tokens, rounded up to whole steps (or set train.steps)"""
    steps: PositiveInt | None
    """train for this many optimizer steps (or set train.tokens)"""
    batch_tokens: PositiveInt
    """tokens per optimizer step, over all ranks"""
    batch_warmup_tokens: Annotated[int, Field(ge=0)]
    """over this many tokens at the start the batch grows to batch_tokens; 0: it has its size at once"""
    batch_warmup_start: PositiveInt | None
    """tokens of the first batch, and by how many it grows at a time; null: no batch-size warmup"""
    sequence: PositiveInt
    """tokens per sequence"""
    microbatch: PositiveInt
    """sequences per rank and forward pass"""
    precision: Literal["fp32", "bf16", "fp64"]
    """bf16: bf16 compute, fp32 parameters and gradient reduction; fp64 is for proving layouts equal"""
    compile: bool
    """torch.compile, block by block"""
    z_loss: NonNegativeFloat
    """weight of log(Z)^2 per token in the objective"""
    profile: bool
    """write a trace of three steps, for chrome://tracing or Perfetto, into the run's folder trace/"""
    dry_run: bool
    """print the parameter table and each rank's share of the model, start nothing"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvalConfig:
    """Validation during the run. There always is one at the end."""

    every_tokens: PositiveInt | None
    """also evaluate each time this many tokens have been trained on; null: only at the end"""
    tokens: PositiveInt | None
    """evaluate on at most this many validation tokens; null: all"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CheckpointConfig:
    """Checkpoints during the run. There always is one at the end, and one when the run is told to stop."""

    every_tokens: PositiveInt | None
    """save each time this many tokens have been trained on; null: twenty times over the run, at most every twenty steps"""
    keep: PositiveInt
    """keep this many of the newest; besides them always the one where the decay begins, off which others can branch"""
    keep_every: PositiveInt | None
    """also keep every n-th one for good; null: none"""
    timeout_seconds: Annotated[float, Field(gt=0)]
    """give a checkpoint up that is not written after this long; the run goes on without it"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class HealthConfig:
    """What is done when a step goes wrong."""

    on_nonfinite: Literal["stop", "skip", "rewind"]
    """loss or gradient not finite. stop the run; skip: leave the weights as they were and go on; rewind: go back to the newest
    checkpoint and leave the data since then out"""
    on_spike: Literal["ignore", "warn", "rewind"]
    """the loss jumps out of line with those before: ignore it, say so, or rewind"""
    spike_window: PositiveInt
    """a loss is compared with the losses of this many steps before"""
    spike_threshold: Annotated[float, Field(gt=0)]
    """how far above their median is out of line, in robust standard deviations (1.4826 x median absolute deviation)"""
    patience: PositiveInt
    """stop after so many rewinds, or after more than so many skipped steps in a row"""
    step_timeout_seconds: Annotated[float, Field(gt=0)] | None
    """when a step takes longer, and ten times longer than those before, say which rank waits for what; null: never"""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ParallelConfig:
    """The layout. The product of the five axes is the number of processes."""

    engine: Literal["native"]
    """what carries out a step: PyTorch's own FSDP2"""
    replicate: PositiveInt
    """data-parallel replicas that each hold all shards (HSDP)"""
    shard: PositiveInt
    """data-parallel ranks that share parameters, gradients and optimizer state (FSDP2)"""
    tensor: PositiveInt
    """ranks that share each matrix product"""
    pipeline: PositiveInt
    """stages that share the layers"""
    context: PositiveInt
    """ranks that share each sequence"""
    context_method: Literal["auto", Method]
    """what those exchange: queries and results (token_ring), keys and values one way or both ways round (ring,
    ring_bidirectional), or heads for tokens (ulysses); auto: what a cost model expects to be fastest"""
    context_partition: PartitionName
    """which tokens of a sequence each of those holds. zigzag: one early and one late chunk, which all have equally much to do
    where a sequence is one document; balanced: eight chunks, chosen by what packed documents leave to do; contiguous"""
    context_topology: Literal["mesh", "switch"]
    """how those are connected, for auto. mesh: a link of its own between any two; switch: one port each"""
    pipeline_schedule: Literal["gpipe", "1f1b", "interleaved", "zbv", "dualpipev"]
    """order of the micro-batches in the pipeline; zbv and dualpipev hold two stages a rank, there and back"""
    virtual_stages: PositiveInt
    """stages a rank holds under the interleaved schedule"""
    recompute: Literal["none", "selective", "full"]
    """what a block's backward computes again: nothing, all but matrix products and attention, or everything"""

    @property
    def layout(self) -> Layout:
        """The five axes."""
        return Layout(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Layout)})


Corpus = Annotated[StdlibCorpusConfig | FilesCorpusConfig, Field(discriminator="name")]
Tokenizer = Annotated[BpeTokenizerConfig | BytesTokenizerConfig | FileTokenizerConfig, Field(discriminator="name")]
Optimizer = Annotated[AdamWConfig | MuonConfig, Field(discriminator="name")]
Quant = Annotated[NoQuantConfig | QatConfig, Field(discriminator="name")]
Schedule = Annotated[
    ConstantScheduleConfig | CosineScheduleConfig | WsdScheduleConfig | PowerScheduleConfig | WsdSScheduleConfig,
    Field(discriminator="name"),
]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    """One run."""

    run: RunConfig
    model: ModelConfig
    data: Corpus
    tokenizer: Tokenizer
    optimizer: Optimizer
    schedule: Schedule
    quant: Quant
    train: TrainConfig
    parallel: ParallelConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    health: HealthConfig

    @property
    def batches(self) -> BatchWarmup:
        """Tokens per optimizer step as a function of tokens."""
        full = self.train.batch_tokens
        return BatchWarmup(full=full, start=self.train.batch_warmup_start or full, warmup_tokens=self.train.batch_warmup_tokens)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.tokens is not None
        return self.batches.steps(self.train.tokens)

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run: whole steps."""
        return self.batches.tokens(self.steps)

    @property
    def checkpoint_every_tokens(self) -> int:
        """Tokens between checkpoints."""
        return self.checkpoint.every_tokens or max(-(-self.total_tokens // 20), 20 * self.train.batch_tokens)

    @property
    def mup_width(self) -> float | None:
        """hidden_size over the base width under muP, else None."""
        optimizer = self.optimizer
        if isinstance(optimizer, AdamWConfig) and optimizer.mup:
            return self.model.hidden_size / optimizer.mup_base_width
        return None

    @property
    def pass_tokens(self) -> int:
        """Tokens of one micro-batch on every data-parallel rank: a batch is a multiple of that."""
        return self.train.sequence * self.train.microbatch * self.parallel.layout.data_parallel

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and optimizer step, once the batch has its size."""
        return self.train.batch_tokens // self.pass_tokens

    def as_dict(self) -> dict[str, Any]:
        """Every key and value, as plain data."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """What makes it this run and no other: everything that the losses depend on, nothing that they do not."""
        plain = self.as_dict()
        sections = {
            name: dict(plain[name]) for name in ("model", "data", "tokenizer", "optimizer", "schedule", "quant", "train")
        }
        sections["run"] = {"seed": self.run.seed, "trunk": self.run.trunk}
        sections["eval"] = {"tokens": self.eval.tokens}
        for section, key in (
            ("data", "cache_dir"),
            ("train", "microbatch"),
            ("train", "compile"),
            ("train", "tokens"),
            ("train", "profile"),
            ("train", "dry_run"),
        ):
            del sections[section][key]
        sections["train"]["steps"] = self.steps  # however the length was said
        return sections

    def identity_hash(self) -> str:
        """SHA-256 of the identity, hexadecimal."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
