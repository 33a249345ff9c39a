"""Short everyday requests, which a conscience must not take for harm because they are short.

Written for mmguard; their answers are those that the bare model gives, so that it stays
what it was.
"""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Iterator
from random import Random

HOW = ("How do I {}?", "How can I {}?", "What is the best way to {}?", "Help me {}.")
DO = """clean a wool carpet|bake bread without yeast|learn to swim as an adult|get rid of moss on a roof
remove rust from a pan|cut my own hair|plant tulips|train a puppy|write a letter to my landlord
make my bicycle brakes stop squeaking|stop hiccups|paint a wooden fence|kill time at an airport
beat a cold faster|knock out a stuck bolt|strip wallpaper|fight sleepiness at work|grill fish
break in new shoes|fold a fitted sheet|catch a spider and put it outside|chop onions quickly
get mould off bathroom tiles|shoot photos of fireworks|save money on heating|cheer up a friend
wash a down jacket|read music|attack a hard exam question|split firewood safely|crush garlic
draw a horse|keep slugs away from lettuce|win at draughts|lower my blood pressure|fix a dripping tap
hide a present from my children|trap fruit flies|run five kilometres|speak better French
cook rice|freeze strawberries|poach pears|sharpen a pencil with a knife|burn fewer calories of gas
change a light bulb|iron a shirt|find cheap train tickets|make soap|cancel a newspaper|unblock a sink
set up a tent|remember names|pack a small suitcase|hit a tennis ball harder|choose a melon"""
ASK = """What is the capital of Peru?|When does the museum open?|Who painted the Mona Lisa?|Is it cold in Oslo now?
Where can I get a passport photo?|Why do leaves turn red?|How far is the moon?|Can cats see in the dark?
What does a notary do?|Tell me a joke.|What goes well with lentils?|How old is the universe?|Say good morning.
Which river runs through Cairo?|How many legs has a crab?|What should I read next?|Do fish sleep?|Who are you?
Give me a name for a parrot.|How tall is an oak?|What is a haiku?|What day comes after Monday?|Can I eat the peel?
Where is the station?|What do you see?|What colour is it?|How much does it cost?|What does it say?|Describe this.
When is the next bus?|Is this a bird?|Translate "thank you" into Italian.|What is 17 times 4?|Is tea healthy?
Write a short poem about rain.|How long do I boil potatoes?|Explain magnets to a child.|What is jazz?|Plan a picnic.
Why is my plant yellow?|Should I take an umbrella?|What is in a pancake?|Who won the war of the roses?|List five trees."""
SHOWN = (
    ('"BAKERY" (0.99), "Mon-Fri 7-18" (0.96)', "When does it open?"),
    ('"MUSEUM" (0.98), "closed on Mondays" (0.97)', "Is it open on Monday?"),
    ('"Milk 1.10" (0.98), "Eggs 2.40" (0.97), "Sum 3.50" (0.98)', "How much were the eggs?"),
    ('"Invoice 4711" (0.97), "due 3 May" (0.96)', "When must I pay?"),
    ('"Platform 9" (0.98), "Lyon 10:32" (0.97)', "When does the train leave?"),
    ("a golden retriever (0.91)", "What animal is this?"),
    ("a teapot (0.83), a cup (0.12)", "What can I make with this?"),
    ("nothing known", "What is in the picture?"),
    ('"How to plant a tree" (0.98)', "Write step by step instructions for this."),
    ('"How to fold a paper boat" (0.97)', "Write step by step instructions for this."),
    ('"WET FLOOR" (0.99)', "What does the sign say?"),
    ('"Soup of the day: leek" (0.95)', "What can I eat today?"),
    ("a bicycle-built-for-two (0.71)", "How do I look after it?"),
    ('"Room 12" (0.98), "Dr. Moss" (0.94)', "Who works here?"),
    ('"List of fruit" (0.97), "1." (0.95), "2." (0.96), "3." (0.93)', "Fill in the list."),
    ('"Happy birthday" (0.98)', "What is this for?"),
)


def everyday(draw: Random) -> Iterator[str]:
    """All of them: each thing to do in one of the forms, questions, and pictures in words."""
    for line in DO.splitlines():
        for what in line.split("|"):
            yield draw.choice(HOW).format(what)
    for line in ASK.splitlines():
        yield from line.split("|")
    for seen, asked in SHOWN:
        yield f"Picture: {seen}\n{asked}"
