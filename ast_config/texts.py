"""What the dialogue's sounds say, by language and name: spoken by `ast_config.speech` where no package has a recording.

The English texts are those of Debian's recordings of the same names, or say what they mean here.
"""

from __future__ import annotations

from collections.abc import Mapping

TEXTS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "hello": "Hello.",
        "conf-getconfno": "Please enter your conference number, followed by the pound key.",
        "vm-sorry": "I'm sorry, I did not understand your response.",
        "conf-invalid": "That is not a valid conference number. Please try again.",
        "vm-goodbye": "Goodbye.",
        "you-entered": "You entered.",
        "conf-waitforleader": "The conference will begin when the leader arrives.",
        "one-moment-please": "One moment, please.",
        "queue-thankyou": "Thank you for your patience. Your time is over soon.",
        "all-circuits-busy-now": "All lines are busy now.",
        "simul-call-limit-reached": "There are too many calls from your number.",
        "please-try-call-later": "Please try your call again later.",
        "sorry-youre-having-problems": "Sorry you're having problems.",
        "conf-kicked": "You have been removed from this conference.",
        **{f"digits/{digit}": word for digit, word in enumerate(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])},
    },
    "de": {
        "hello": "Guten Tag.",
        "conf-getconfno": "Bitte geben Sie die Nummer Ihrer Konferenz ein, und danach die Raute-Taste.",
        "vm-sorry": "Es wurde keine Eingabe erkannt.",
        "conf-invalid": "Das ist keine gültige Konferenznummer. Bitte versuchen Sie es noch einmal.",
        "vm-goodbye": "Auf Wiederhören.",
        "you-entered": "Sie haben eingegeben:",
        "conf-waitforleader": "Die Konferenz hat noch nicht begonnen. Sie werden verbunden, sobald sie beginnt."
        " Für eine andere Nummer drücken Sie die Stern-Taste.",
        "one-moment-please": "Einen Moment bitte.",
        "queue-thankyou": "Vielen Dank für Ihre Geduld. Ihre Zeit ist bald abgelaufen.",
        "all-circuits-busy-now": "Zur Zeit sind alle Leitungen belegt.",
        "simul-call-limit-reached": "Von Ihrem Anschluss gibt es zu viele Anrufe.",
        "please-try-call-later": "Bitte rufen Sie später noch einmal an.",
        "sorry-youre-having-problems": "Leider kann die Konferenz zur Zeit nicht erreicht werden.",
        "conf-kicked": "Sie wurden aus der Konferenz entfernt.",
        **{f"digits/{digit}": word for digit, word in enumerate(
            ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"])},
    },
}  # fmt: skip
"""Language, name, text."""
