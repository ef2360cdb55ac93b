"""What a compressed Whisper encoder is worth in words: its output goes to the decoder that it was trained with.

decoder     CTranslate2's decoder, and the words that it writes
faster_whisper  the same speech through faster-whisper itself
words       word error rates, true and beside the dense model's own transcript; repetition loops
spoken      the speech: what is written down, and what models are fitted to
hearing     utterances in windows as Whisper hears them, 30 s or shorter
by_outputs  low rank by the principal components of the maps' outputs
short_heads  attention heads of fewer dimensions
ways        how a model is compressed: KIND=VALUE
planner     which window and ranks a time allows
relearning  distillation of the encoder's output on unlabelled speech
trial       a point: written down, counted, timed, kept
word_curve  the picture
"""
