"""The sound of a TinyShorts clip: spoken-like words over a background sound, 16 kHz mono.

A word is a fixed sequence of vowel-like syllables, each two resonances (formants) driven by the voice's pitch, as in
formant synthesis. Pitch, level and formants vary from clip to clip; the sequence of formants is the word's identity.
"""

from __future__ import annotations

import numpy as np

from arcvideo.synthetic.script import Script

SAMPLE_RATE = 16_000
VOWELS = {"a": (750, 1250), "e": (500, 1900), "i": (280, 2400), "o": (480, 860), "u": (310, 620)}
"""First and second formant in Hz."""
SYLLABLES = {
    "mango": "ao",
    "river": "ie",
    "piano": "iao",
    "tiger": "ai",
    "lemon": "eo",
    "robot": "oi",
    "candle": "ua",
    "window": "iu",
    "garden": "ae",
    "silver": "ei",
    "pepper": "ea",
    "rocket": "oeu",
}
"""The vowels of each spoken word; no two words share a sequence."""
_SPEECH_LEVEL = 0.30
_BACKGROUND_LEVEL = 0.08
_FADE = 320


def waveform(script: Script) -> np.ndarray:
    """Return (duration * 16000,) float32 in [-1, 1], from the script alone."""
    rng = np.random.default_rng([script.seed, 3])
    total = script.duration * SAMPLE_RATE
    mix = rng.standard_normal(total, dtype=np.float32) * np.float32(0.002)
    pitch = rng.uniform(95.0, 210.0)  # one speaker per clip
    for word in script.speech:
        start, end = (min(total, round(second * SAMPLE_RATE)) for second in (word.start, word.end))
        spoken = _word(word.text, samples=end - start, pitch=pitch * rng.uniform(0.94, 1.06), rng=rng)
        mix[start:end] += spoken * np.float32(_SPEECH_LEVEL * rng.uniform(0.7, 1.2))
    for sound in script.sounds:
        start, end = min(total, sound.start * SAMPLE_RATE), min(total, sound.end * SAMPLE_RATE)
        noise = _background(sound.name, samples=end - start, rng=rng)
        mix[start:end] += noise * np.float32(_BACKGROUND_LEVEL * rng.uniform(0.7, 1.3))
    return np.clip(mix, -1.0, 1.0)


def _word(text: str, *, samples: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    if text not in SYLLABLES:
        raise ValueError(f"spoken word {text!r}: add its syllables to SYLLABLES in arcvideo/synthetic/sound.py")
    vowels = SYLLABLES[text]
    bounds = np.linspace(0, samples, len(vowels) + 1).astype(int)
    spoken = np.zeros(samples, dtype=np.float32)
    for vowel, start, end in zip(vowels, bounds[:-1], bounds[1:], strict=True):
        spoken[start:end] = _syllable(vowel, samples=int(end - start), pitch=pitch, rng=rng)
    return spoken


def _syllable(vowel: str, *, samples: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """Each formant is a carrier under a train of pulses at the pitch: harmonics gathered around the formant."""
    time = np.arange(samples, dtype=np.float32) / np.float32(SAMPLE_RATE)
    glide = np.float32(pitch) * (1 + np.float32(rng.uniform(-0.15, 0.15)) * time)
    pulses = np.exp(3.0 * (np.cos(2 * np.pi * glide * time, dtype=np.float32) - 1))
    first, second = (formant * rng.uniform(0.96, 1.04) for formant in VOWELS[vowel])
    voice = np.cos(np.float32(2 * np.pi * first) * time) + 0.6 * np.cos(np.float32(2 * np.pi * second) * time)
    return (pulses * voice * _envelope(samples)).astype(np.float32)


def _envelope(samples: int) -> np.ndarray:
    """Return 1 with short fades at both ends, so that syllables can be told apart."""
    fade = min(_FADE, samples // 2)
    shape = np.ones(samples, dtype=np.float32)
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    shape[:fade] = ramp
    shape[samples - fade :] = ramp[::-1]
    return shape


def _background(name: str, *, samples: int, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(samples, dtype=np.float32) / np.float32(SAMPLE_RATE)
    turn = np.float32(2 * np.pi)
    if name == "beep":  # a tone, on and off
        sound = np.sin(turn * np.float32(rng.uniform(2900, 3300)) * time) * (time * 4 % 1 < 0.5)
    elif name == "siren":  # a slow sweep around 1.4 kHz; the phase is the integral of the frequency
        rate = np.float32(rng.uniform(0.9, 1.3))
        phase = 1400 * time - 500 / (turn * rate) * np.cos(turn * rate * time)
        sound = np.sin(turn * phase)
    elif name == "hum":  # mains and its overtones
        base = np.float32(rng.uniform(95, 125))
        sound = sum(np.sin(turn * base * overtone * time) / overtone for overtone in (1, 2, 3))
    elif name == "rattle":  # bursts of noise
        bursts = np.exp(-30.0 * (time * np.float32(rng.uniform(9, 12)) % 1))
        sound = 2.0 * rng.standard_normal(samples, dtype=np.float32) * bursts
    else:
        raise ValueError(f"background sound {name!r}: sound.py knows beep, siren, hum and rattle")
    return np.asarray(sound * _envelope(samples), dtype=np.float32)
