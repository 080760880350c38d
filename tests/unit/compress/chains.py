"""What every codec is tested with: a small model's layout, and a chain for each row of the table and more."""

from fedloom.layout import Layout

LAYOUT = Layout(("w", "k", "b", "thin"), ((6, 40), (5, 3, 4), (6,), (1, 7)), 4)
SIZE = LAYOUT.size
ANY_LENGTH = (
    *("float32", "float16", "bfloat16", "sign", "sign:32", "qsgd:4:64", "qsgd:4:64:max", "qsgd:2:512", "qsgd:8"),
    *(f"int{bits}" for bits in range(1, 9)),
    *(
        "int4:16",
        "topk:0.1",
        "topk:100",
        "topk:1.0",
        "topk:0.9",
        "randomk:0.1",
        "mask:0.1",
        "mask:1.0",
        "subsample:0.3",
    ),
    *("rotate", "rotate:16", "rotate | int4:16", "rotate | subsample:0.3 | int2:16", "topk:0.1 | int8 | zstd"),
    *("topk:0.5 | rotate | sign", "subsample:0.3 | float16", "subsample:0.5 | sign:16", "subsample:0.4 | topk:0.5"),
    *(
        "topk:0.5 | randomk:0.5 | int3",
        "zstd",
        "sign | zstd:-3",
        "rotate | int1:24",
        "subsample:0.2 | topk:0.5 | sign:8",
    ),
)
WITH_LAYOUT = (
    "lowrank:2",
    "powersgd:2",
    "powersgd:1:4 | int8 | zstd",
    "lowrank:3 | rotate | int4",
    "powersgd:2 | sign",
)
CHAINS = (*ANY_LENGTH, *WITH_LAYOUT)
