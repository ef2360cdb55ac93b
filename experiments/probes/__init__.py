"""Probes: what a model's frozen layers know, asked in two ways that share how speech is heard.

Accuracy of linear probes on frames, for `experiments.card` and for each point of a compression curve:

    tasks      the speech and its labelled frames: which phone at which time, who speaks, which utterances train
    probing    linear probes on those frames; `Probes` puts the same few questions to many models in a row

Error rates by SUPERB's recipe on any corpus, for `experiments.probe`:

    questions  what is asked of each utterance (phones, characters, speakers, digits), and who trains and who tests
    listening  all layers of one model on all utterances, heard once, kept where memory allows
    untrained  what needs no training: CKA to a teacher, PNMI of clusters, the model's own masked prediction
    rates      the tables and the picture of it

How layers are computed is `jaxssl.inference.encode`; how probes are fitted is `jaxssl.training.probe` (linear, frames)
and `jaxssl.training.ctc` (error rates).
"""
