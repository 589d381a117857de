"""Every choice of the baseline, in one place: a plain GPT-2 recipe of 2019.

Each line is `NAME = literal`, so that a search may change it without reading the rest. `setting.py` multiplies
the sizes for larger runs; the values here are those of the smallest one.
"""

# The model (model.py)
DEPTH = 3  # blocks
WIDTH = 96  # channels; a multiple of HEAD_WIDTH
HEAD_WIDTH = 32  # channels of one attention head; even
MLP_TIMES = 4  # hidden channels of a block's MLP, in widths
ACTIVATION = "gelu"  # gelu, relu2 (squared ReLU), silu or swiglu (gated, two thirds as wide: as many weights)
POSITIONS = "learned"  # learned (an embedding), rope (rotated queries and keys) or alibi (a linear penalty)
NORM = "layer"  # layer or rms
NORM_PLACE = "pre"  # pre (before attention and MLP) or post (after their sum with the input)
TIED = True  # the output layer is the embedding
INIT_STD = 0.02  # standard deviation of the first weights
DROPOUT = 0.0  # of what attention and MLP add

# The training (train.py)
CONTEXT = 128  # bytes of one window; at least as many as the evaluation asks for in a row
BATCH = 8  # windows of one step
OPTIMIZER = "adamw"  # adamw, or muon for the matrices inside the blocks and adamw for the rest
LEARNING_RATE = 0.001
BETA2 = 0.95  # of AdamW; beta1 is 0.9
WEIGHT_DECAY = 0.1  # of matrices; other weights do not decay
SCHEDULE = "constant"  # constant, or linear or cosine down to zero
WARMUP = 0.1  # share of the budget over which the learning rate rises
CLIP = 1.0  # greatest norm of the gradient
EMA = 0.0  # decay per step of an average of the weights that is kept in their place; 0: none
