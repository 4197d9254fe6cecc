"""PruneGPT: how far can GPT-2 be compressed before it forgets how to write?"""

import warnings

# tqdm asks for notebook widgets, which need scripts from another host; progress.py does without.
warnings.filterwarnings("ignore", message="IProgress not found")
# Sparse matrices are made here from dense ones, so that they need no check; their being "beta" is
# not for every reader of a notebook to know.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
