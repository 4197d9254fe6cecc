"""PruneGPT: how far can GPT-2 be compressed before it forgets how to write?"""

import os
import warnings

# Large tensors in large pages: a step of GPT-2 124M on a CPU takes a third longer in small ones.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# tqdm asks for notebook widgets, which need scripts from another host; progress.py does without.
warnings.filterwarnings("ignore", message="IProgress not found")
# Sparse matrices are made here from dense ones, so that they need no check; their being "beta" is
# not for every reader of a notebook to know.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
