"""Fingerprints of picture and sound: a clip is found again when it was trimmed, encoded anew or packed anew."""
