"""PruneGPT: how far can GPT-2 be compressed before it forgets how to write?"""

import warnings

# tqdm asks for notebook widgets, which need scripts from another host; progress.py does without.
warnings.filterwarnings("ignore", message="IProgress not found")
