"""AI research by execution (paper 003, chapter 4): ideas are turned into patches, run in a sandbox, and learnt from.

environment.py   a folder: what is searched for, the baseline codebase, the evaluation, the limits
ideas.py         who has ideas: a language model, or mutations of declared parameters
implement.py     an idea in words becomes a patch
patch.py         a patch becomes changed files, or a reason why not
sandbox.py       untrusted commands: no network, no secrets, nothing to write to but their own copy, limits
attempt.py       one patch: copy, run, check, evaluate from pristine files
archive.py       every attempt in one SQLite file
loop.py          the search: strategies, workers, going on after a kill
analyse.py       noise of the baseline, progress, what kind of idea won, confirmation of the winner
reinforce.py     the ideator finetuned with execution as its reward
"""
