"""Every setting: its section, default, help, allowed values or bounds. What is made of them is in
:mod:`~cian.tools.engine.config`.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Tuple, Union

from cian.choices import (
    AFFINITIES,
    BACKBONES,
    COMPLETION_LABELS,
    COMPLETION_TARGETS,
    JPEG_WARNINGS,
    LABEL_PADDINGS,
    LABEL_RESIZES,
    LONELY,
    MERGES,
    NORMALISATIONS,
    ORDERS,
    PAIRINGS,
    SCALES,
)
from cian.tools.engine.fitting import FITS

MAX_SEED = 2 ** 32 - 1  # of NumPy's generators
CRFS = ("none", "test", "retrain", "deeplab", "soft")
ENGINES = ("auto", "mxnet", "onnx")
PRETRAINED = ("ImageNet weights: a .params, .pth or .safetensors file (docs/voc.md says which); 'gluon' "
              "fetches GluonCV's; 'package' for efficientnet_lite0; empty is random")


def option(default: Any, text: str, choices: Tuple[Any, ...] = (), low: Optional[float] = None,
           high: Optional[float] = None, hashed: Union[bool, str] = True) -> Any:
    """A configuration key: its default, one line of help, its allowed values or bounds.

    ``hashed=False`` marks keys that say where and how fast a run happens and not what it computes;
    they stay out of the hash. ``hashed="changed"`` keys enter it only where they are not at their
    default, so that files from before the key keep their hash.
    """
    metadata = {"help": text, "choices": choices, "low": low, "high": high, "hashed": hashed}
    if isinstance(default, (list, tuple)):
        return field(default=tuple(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    """Where the images, labels and lists are. Empty paths default to the VOC layout below ``root``."""

    root: str = option("", "VOC-layout tree: JPEGImages/ Annotations/ ImageSets/Segmentation/", hashed=False)
    image_root: str = option("", "folder of NAME.jpg; default ROOT/JPEGImages", hashed=False)
    annotation_root: str = option(
        "", "folder of NAME.xml with the image-level labels; default ROOT/Annotations", hashed=False)
    labels_file: str = option(
        "", "image-level labels as text, 'NAME class class ...' a line, in place of the XML", hashed=False)
    label_root: str = option("", "folder of NAME.png seeds (pseudo-labels) to train on", hashed=False)
    mask_root: str = option(
        "", "folder of NAME.png ground truth, for measurement only; default ROOT/SegmentationClassAug",
        hashed=False)
    classes: str = option(
        "voc", "'voc' for VOC's 20 classes, or a file with a class a line, background first", hashed=False)
    train_list: str = option("train_aug", "training list: a file, or a name below ImageSets/Segmentation",
                             hashed=False)
    val_list: str = option("val", "validation list: a file, or a name below ImageSets/Segmentation",
                           hashed=False)
    records: str = option("", "folder of prepared records; empty packs into SNAPSHOT/records", hashed=False)
    jpeg_warnings: str = option(
        "harmless", "JPEGs that their decoder warns of: refuse them, take those that lose no pixel by it "
        "(harmless), or accept all that can be decoded", JPEG_WARNINGS, hashed=False)


@dataclass(frozen=True)
class NetworkConfig:
    """The segmentation network (paper, sections 'CIAN Module' and 'Multiple Pairs')."""

    model: str = option("resnet101_largefov",
                        f"BACKBONE_largefov: {', '.join(BACKBONES[:-1])} or {BACKBONES[-1]}")
    affinity: str = option("cross", "none (vanilla DeepLab), self (the paper's baseline) or cross (CIAN)",
                           AFFINITIES)
    group_size: int = option(2, "images in a group of common class; 2 is one reference for each query",
                             low=2, high=1024)
    merge_type: str = option("max", "merge of the messages, Eq. 5", MERGES)
    merge_self: bool = option(True, "the image's message to itself takes part in the merge")
    embed_channels: int = option(0, "channels of query, key and value; 0 is half of the backbone's", low=0,
                                 high=65536)
    pretrained: str = option("", PRETRAINED)


@dataclass(frozen=True)
class LossConfig:
    """The losses (Eq. 6-9)."""

    completion: bool = option(True, "add the completion loss (+CP)")
    completion_labels: str = option(
        "seed", "classes that Eq. 7 lets through: those of the cropped, downsampled seed (original code) "
        "or the image-level labels and background (paper)", COMPLETION_LABELS)
    completion_target: str = option(
        "cross", "branch whose argmax is the target: the cross one for both losses (original code) or each "
        "its own (paper's Eq. 7-9)", COMPLETION_TARGETS)
    normalise: str = option(
        "device", "divide by the mean number of pixels over the device's batch (original code) or by each "
        "image's own (paper's Eq. 6, 8)", NORMALISATIONS)


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation and loading of both training rounds."""

    epochs: int = option(20, "epochs", low=1, high=10 ** 6)
    batch_size: int = option(16, "images a step over all devices", low=1, high=65536)
    crop_px: int = option(321, "side of the training crop, pixels", low=9, high=16384)
    lr: float = option(5e-4, "initial learning rate of the backbone", low=0, high=100)
    lr_mult_new: float = option(10.0, "learning-rate multiplier of the new layers", low=0, high=10 ** 4)
    momentum: float = option(0.9, "SGD momentum", low=0, high=1)
    weight_decay: float = option(5e-4, "weight decay of *_weight and bn_out_gamma", low=0, high=1)
    decay_beta: bool = option(False, "decay bn_out_beta too (the original's optimiser does not)")
    lr_power: float = option(0.9, "power of the poly decay", low=0, high=100)
    lr_decay: str = option("epoch", "poly decay steps once an epoch (original code) or every iteration",
                           ("epoch", "iteration"))
    gamma_start: float = option(
        0.0, "bn_out_gamma at the start of a first round; 0 (original and paper) leaves the affinity "
        "without effect until it has grown", low=-1000, high=1000, hashed="changed")
    embed_start: float = option(
        1.0, "factor of the query and key weights at the start of a first round; 1 is Normal(0.01) "
        "(original and paper), which leaves the affinity uniform where features are small", low=0, high=1000,
        hashed="changed")
    freeze: Tuple[str, ...] = option(
        (), "name prefixes of parameters that do not train, beside the backbone's batch norms")
    features: str = option(
        "", "stored: train on windows of features of whole images, computed once below the first layer of "
        "the backbone that trains; empty: on crops of pixels (original and paper)", ("", "stored"),
        hashed="changed")
    pairing: str = option(
        "common", "how groups are drawn: common (original's queue), even (every image a query once an "
        "epoch) or random (Table 3)", PAIRINGS)
    lonely: str = option(
        "end", "common pairing of an image that shares no class with any other: end the epoch at its turn "
        "(original code) or skip it", LONELY)
    order: str = option(
        "original",
        "random numbers: one np.random stream as the original code, or a counter of (seed, epoch, index)",
        ORDERS)
    scales: Tuple[float, ...] = option(SCALES, "random scales", low=0.01, high=100)
    mirror: bool = option(True, "random horizontal flip")
    label_padding: str = option("background", "label of padded pixels: background (original code) or ignore",
                                LABEL_PADDINGS)
    label_resize: str = option(
        "bilinear", "reduction of labels to stride 8: bilinear of the indices (original code) or nearest",
        LABEL_RESIZES)
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=MAX_SEED)
    keep: int = option(5, "checkpoints to keep", low=1, high=10 ** 6, hashed=False)
    save_every: int = option(0, "also save every so many steps; 0 saves at the end of an epoch", low=0,
                             high=10 ** 9,
                             hashed=False)
    log_every: int = option(50, "steps between lines of the log", low=1, high=10 ** 9, hashed=False)


@dataclass(frozen=True)
class CamConfig:
    """The CAM classifier (paper, section 'Initial Seeds')."""

    model: str = option("vgg16", "backbone of the classifier", BACKBONES)
    pretrained: str = option("", PRETRAINED)
    epochs: int = option(15, "epochs", low=1, high=10 ** 6)
    batch_size: int = option(16, "images a step", low=1, high=65536)
    crop_px: int = option(321, "side of the training crop, pixels", low=9, high=16384)
    lr: float = option(1e-3, "initial learning rate of the backbone", low=0, high=100)
    lr_mult_new: float = option(10.0, "learning-rate multiplier of the classification layer", low=0,
                                high=10 ** 4)
    momentum: float = option(0.9, "SGD momentum", low=0, high=1)
    weight_decay: float = option(5e-4, "weight decay", low=0, high=1)
    freeze_backbone: bool = option(False, "train the classification layer only (features are computed once)")
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=MAX_SEED)


@dataclass(frozen=True)
class SeedConfig:
    """From class activation maps to seeds."""

    foreground_threshold: float = option(0.3, "CAM in [0, 1] above which a pixel is a seed of the class",
                                         low=0, high=1)
    background_threshold: float = option(
        0.06, "saliency in [0, 1] below which a pixel is background; the kinds of saliency differ in scale",
        low=0, high=1)
    thresholds: str = option(
        "given", "both thresholds as given, or auto: chosen without masks, where CAM and saliency agree",
        ("given", "auto"), hashed="changed")
    saliency: str = option(
        "builtin", "maps: images (a folder of NAME.png, the paper's way), builtin (barrier distance and "
        "colour contrast to the image's "
        "border) or low_cam (no map: the largest CAM of the image stands for it)",
        ("images", "builtin", "low_cam"))
    conflicts: str = option(
        "ignore", "pixels that several classes claim: ignored (paper) or given to the largest CAM; those "
        "that a class and the background claim are ignored always", ("ignore", "largest"))
    saliency_root: str = option("", "folder of the saliency images, NAME.png with 0..255 for 0..1",
                                hashed=False)
    scales: Tuple[float, ...] = option((1.0,), "scales over which the CAM is averaged", low=0.01, high=100)
    mirror: bool = option(False, "average the CAM with that of the mirrored image")
    strong_ratio: float = option(0.0, "portion of the seeds replaced with ground truth (Table 4)", low=0,
                                 high=1)
    strong_seed: int = option(0, "seed of the choice of the replaced ones", low=0, high=MAX_SEED)


@dataclass(frozen=True)
class PredictConfig:
    """Test-time prediction."""

    scales: Tuple[float, ...] = option((1.0, 0.75, 1.25), "scales, 1 first", low=0.01, high=100)
    add_max: bool = option(True, "average in the maximum of the scales as one more map")
    mirror: bool = option(True, "average with the logits of the mirrored image")
    fit: str = option(
        "pad", "images are padded to a square of size_px (original's test), warped to it (original's "
        "retraining labels), padded to sides "
        "of 32 n + 1 (tight: the least that keeps the mirrored image in place at all scales) or left as "
        "they are", FITS)
    size_px: int = option(513, "side of the square, pixels; larger images are left as they are under pad",
                          low=9, high=16384)
    filter_labels: bool = option(
        False, "restrict predictions to the image-level labels and background (the original does not)")
    crf: str = option("test", "dense CRF preset: none, test, retrain, deeplab or soft", CRFS)
    retrain_fit: str = option("warp", "fit of the images for the labels of the second round (original: warp)",
                              FITS, hashed="changed")
    retrain_crf: str = option(
        "retrain", "CRF preset for the labels of the second round; none: the predictions without CRF", CRFS,
        hashed="changed")
    retrain_agreed: bool = option(
        False, "leave pixels whose class the CRF changes without a label in the second round (original: "
        "they get the CRF's)", hashed="changed")
    retrain_filter_labels: bool = option(
        False, "restrict the labels of the second round to the image-level labels and background (the "
        "original does not)", hashed="changed")
    features: str = option(
        "", "stored: take what lies below the layers that were trained from stored features of the list; "
        "empty: compute it", ("", "stored"), hashed="changed")
    engine: str = option(
        "auto", "what runs networks that do not train (prediction, class activation maps, stored features): "
        "mxnet; onnx, which is onnxruntime on the CPU; auto: onnx on a CPU where onnxruntime is installed",
        ENGINES, hashed=False)
    batch_size: int = option(1, "images a forward pass, where sizes agree", low=1, high=65536, hashed=False)


@dataclass(frozen=True)
class RunConfig:
    """Where and how fast; none of it enters the hash except the devices, which the losses normalise
    by, and mixed precision. The order
    of sums changes the rounding: it is not in the hash, but a run goes on only with the order that
    it began with."""

    snapshot: str = option("", "folder of checkpoints, logs and predictions", hashed=False)
    devices: Tuple[str, ...] = option(("cpu:0",), "devices of each worker, cpu:N or gpu:N")
    kvstore: str = option(
        "device", "what sums the gradients: device (this process), or MXNet's parameter server over the "
        "workers of tools/launch.py: dist_sync, or dist_device_sync, which sums a worker's own on its GPUs",
        ("device", "dist_sync", "dist_device_sync"), hashed=False)
    patience: float = option(60.0, "seconds after which a silent process of a job counts as lost", low=1,
                             high=86400, hashed=False)
    workers: int = option(0, "processes for loading and CRF; 0 is one a core", low=0, high=1024, hashed=False)
    processes: int = option(
        0, "processes with a network each for prediction on the CPU, which share its cores; 0: two for "
        "many images where OMP_NUM_THREADS is not set, else one", low=0, high=1024, hashed=False)
    features_root: str = option(
        "", "folder of stored features, which any number of runs share; default RECORDS/features",
        hashed=False)
    features_gb: float = option(50.0, "10^9 bytes that stored features may take in that folder", low=0,
                                high=10 ** 6,
                                hashed=False)
    precision: str = option(
        "float32",
        "of training: float32, or mixed: float16 where MXNet's AMP uses it; for GPUs, never measured",
        ("float32", "mixed"), hashed="changed")
    sums: str = option("fast", "order of the sums in the classifier and the affinity in training on CPUs: "
                       "fast, equal to the original's up to rounding; original, to the last bit",
                       ("fast", "original"), hashed=False)
    pinned: bool = option(
        False,
        "copy training batches to GPUs out of page-locked memory, beside the step before; never measured",
        hashed=False)
