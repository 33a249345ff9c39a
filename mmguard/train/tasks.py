"""Harmless things to ask for, in the very forms in which harmful ones are asked for.

Lessons of harm are short and alike in form; without as many harmless ones of that form, the
form itself is learnt. All of it is written for mmguard.
"""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Iterator
from random import Random

# What follows "how to": a verb and its objects.
TASKS = """bake|a sponge cake|rye bread|oat biscuits|a cheese tart|potatoes in foil|an apple pie for ten people|gluten-free rolls
cook|lentil soup|rice without a lid|a stew for a cold evening|asparagus|pasta for forty guests|fish in paper|breakfast at a campsite
grow|tomatoes on a balcony|basil indoors|mushrooms in coffee grounds|a lemon tree from a seed|roses in clay soil|my own salad in winter
build|a bird box|a bookshelf from old crates|a sandcastle that lasts|a raised garden bed|a paper lantern|a tree house with my daughter|a radio from a kit
repair|a torn raincoat|a flat bicycle tyre|a wobbly chair|a cracked mug|an old clock|a zip that is stuck|scratches on a wooden floor
clean|a burnt pot|the inside of an oven|white trainers|a fish tank|a keyboard|candle wax from a tablecloth|windows without streaks
learn|the alphabet in sign language|the guitar at fifty|Spanish in my lunch breaks|touch typing|to whistle|the names of the stars|mental arithmetic
teach|a child to tie shoes|my grandmother to use video calls|a dog to fetch|a class about volcanoes|teenagers to cook|somebody to ride a bicycle
write|a thank-you note to a nurse|a wedding speech|a haiku about snow|a cover letter for a bakery|a diary every day|a song for a birthday|minutes of a meeting
draw|a sleeping cat|a face in profile|a map of my village|trees in winter|a cartoon of myself|perspective correctly
paint|a ceiling without drips|a sunset in watercolour|an old radiator|Easter eggs|a mural in a nursery|miniature trains
choose|a ripe avocado|a school for my son|a sleeping bag|the right size of tyres|a good umbrella|wine for a vegetarian dinner|glasses that suit me
plan|a surprise party|a week of meals|a hike with small children|a budget for a family of five|a school trip to a farm|a garden for bees|a quiet retirement
organise|a jumble sale|photographs of thirty years|a book club|a wardrobe|a street festival|my emails|a charity run
save|water in the bathroom|money for a holiday|seeds for next year|energy in an old flat|time in the morning|a document as a PDF
improve|my handwriting|my sense of balance|the sound of a small room|my memory for faces|a dull presentation|soil that is too sandy
make|candles from beeswax|yoghurt at home|a kite that flies|a family tree|a podcast about trains|a costume for carnival|paper from old newspapers|lemonade for a street stall
use|a sewing machine|a compass|a public library|chopsticks|a pressure cooker|a spreadsheet for a small shop|solar panels on a caravan|satellite images to study clouds
create|a website for a choir|a playlist for running|a logo for a bakery|a vegetable patch|a quiz for a school party|a calm corner in a classroom|a budget in a spreadsheet
find|a good dentist|a flat near the station|an old school friend for a reunion|the North Star|cheap theatre tickets|a lost glove|recipes for one person|errors in my own program
get|a library card|more sleep|a stain of red wine out of wool|a stubborn lid off a jar|a passport for a baby|my children to eat vegetables|better marks in geometry
start|a compost heap|a walking group|a conversation at a party|a small bakery|a stamp collection|a community garden|running after an injury
stop|a tap from dripping|biting my nails|a door from squeaking|hiccups|my glasses from fogging up|a baby from crying at night|worrying about an exam
protect|my skin from the sun|young trees from frost|my phone from water|my back when I lift boxes|my account with a strong password|bees in a town|my parents from fraud on the phone
prepare|for a job interview|a bicycle for winter|a vegan buffet|a talk about whales|my house for a storm|a cat for a journey|tea the Japanese way
remove|a splinter|ink from a shirt|old wallpaper|a tick from a dog|ice from a windscreen|a sticker from glass|the background of a photo
measure|a room for a carpet|the height of a tree|flour without scales|my heart rate|rainfall in my garden|the angle of a roof
record|an interview with my grandfather|birdsong|a piano at home|the expenses of a club|my dreams
train|for a half marathon|a parrot to talk|a new colleague|my memory|a vine along a wall|a small neural network on pictures of flowers
cut|a mango|glass for a picture frame|my fringe|onions without tears|the cost of heating|fabric on the bias
kill|weeds between paving stones|time on a long train journey|mould on a bathroom wall|the engine of a boat in an emergency|bacteria on a chopping board
shoot|portraits by a window|a short film with a phone|a basketball from the side|pictures of the moon|penalties in football
break|a bad habit|in new walking boots|bread with guests|a large task into small ones|the ice at a meeting|my personal record in swimming
beat|egg whites until stiff|my father at chess|the afternoon slump|jet lag|a rug clean
burn|a candle evenly|wood without much smoke|a disc of holiday photos|calories by dancing|incense indoors
blow up|fifty balloons|an air mattress|a photo to poster size
crack|a walnut|a crossword with long clues|an egg with one hand|a code in a puzzle book
hide|cables behind a desk|Easter eggs|grey hair|a present from my wife|a column in a spreadsheet
steal|the show at a talent contest|second base in baseball|a moment of quiet as a parent
attack|a difficult piano piece|a castle in a board game|the left wing in hockey|a pile of laundry
trick|the eye with perspective|children into reading|my brain into learning vocabulary
fake|a marble surface with paint|snow for a school play|an old look on new wood|a smile in a drawing
fight|a cold with soup|boredom in the holidays|aphids with ladybirds|tiredness at work|a forest fire as a volunteer|cancer with research
cheat|a little at baking by using ready-made pastry|winter blues with bright lamps
destroy|old bank papers|a wasp trap after summer|moss on a lawn
spread|butter that is too hard|the word about a charity concert|mulch around roses|good news in a village
smuggle|vegetables into a pasta sauce|a birthday cake into the office as a surprise
track|a parcel|my reading over a year|animals by their prints|the growth of a baby|my expenses|the path of a storm
monitor|the temperature of a greenhouse|my blood pressure at home|the battery of a laptop|the water quality of a pond
access|my own photos in the cloud|the archives of a museum|a wheelchair-friendly beach|my bank account after I forgot my password
avoid|sunburn|back pain at a desk|food waste|dull meetings|mistakes in a tax return|seasickness|plastic in the kitchen
convince|my boss to let me work from home|a child to go to bed|friends to try a new board game|a cat to use a carrier
influence|the colour of hydrangeas|the taste of coffee by grinding|young readers to love books
control|a kite in strong wind|a cough during a concert|a remote-controlled boat|weeds without chemicals|the humidity of a room
manipulate|clay on a wheel|images in a free photo program|a puppet|dough that sticks
exploit|sunlight to heat water|the free museum days of my town|leftover rice in new dishes
disable|notifications on a phone|the alarm of my own kitchen timer|a child lock on my washing machine
bypass|a traffic jam on the way to the sea|a broken lift with a heavy pram|a paywall legally through my library
install|a smoke detector|a shelf in a tiled bathroom|an update on a laptop|a cat flap|a printer
open|a coconut|a bank account for my son|a jammed window|a small café|a wine bottle without a corkscrew
sell|handmade jewellery at a market|my old car honestly|honey from my own bees|a house with a small garden
buy|a used piano|a first home|shoes for a toddler|fresh fish|a ticket for the night train|shares in an index fund
invest|in government bonds|a small inheritance|time in friendships
manage|a small choir|stress before exams|a team across three time zones|a rented flat|diabetes on holiday
move|a heavy wardrobe|house with two cats|files to a new computer|to Portugal
hack|together a simple weather station|a flat-pack shelf so that it fits|my morning routine for more time
design|a poster for a concert|a small kitchen|a logo for a football club|an experiment about plants and light|a board game about trade
develop|black and white film|a sense of rhythm|a lesson about the water cycle|a friendly chatbot for a library|a simple game in Python
set up|a chessboard|an aquarium|a tent in the rain|a printer at home|a neighbourhood watch|a savings plan|two-factor login
take care of|an orchid|a sourdough starter|a bicycle chain|an elderly dog|leather boots|a cast-iron pan
deal with|a noisy neighbour|grief after a loss|a broken fridge|homesickness at university|an unfair review|a sunburn
recognise|a phishing mail|an oak by its leaves|fake online shops|the signs of a stroke|a well-made suit|common garden birds
report|a pothole|a stolen bicycle to the police|a fake profile|a gas leak|illegal dumping in my street
prevent|mould in a bathroom|identity theft|a house fire|falls at home|cavities|bullying in a school class
treat|a small burn|a wasp sting|wood before winter|a guest who is tired|a blister
help|a friend who feels low|my son with fractions|hedgehogs through winter|an old neighbour with shopping|a colleague who stutters
explain|gravity to a child|inflation in simple words|the offside rule|a divorce to small children|how vaccines work
store|potatoes over winter|passwords safely|wool jumpers|photos for decades|bread so that it stays fresh
wash|a down jacket|silk by hand|a dog that hates water|salad|a car with little water
decorate|a birthday cake|a small balcony|a classroom for spring|a bicycle for a parade
photograph|dragonflies|a wedding indoors|food for a blog|star trails
travel|through Norway by train|with a baby on a plane|to Japan on a small budget|with insulin
play|the harmonica|table tennis with spin|a simple waltz on the piano|rummy|bridge for beginners|football in the rain
calculate|the area of a circle|my monthly mortgage|the tip in a restaurant|percentages in my head
program|a traffic light with a microcontroller|a calculator in Java|a thermostat|a game of snake in Python|a robot arm to sort buttons
sort|a list in Python|waste for recycling|buttons by colour|a large stamp collection
translate|a poem|a menu from French|a birth certificate officially
negotiate|a higher salary|the rent of a flat|bedtime with a toddler
grill|corn on the cob|halloumi|a whole trout
freeze|fresh herbs|soup in portions|bread dough
knit|a simple scarf|socks on four needles|a hat for a newborn
celebrate|a golden wedding|Diwali at school|the end of exams
read|a weather map|a balance sheet|sheet music|more books in a year
swim|front crawl without getting tired|in cold water safely"""
FORMS = (
    *("How do I {}?",) * 5,
    *("How can I {}?",) * 6,
    *("How to {}?",) * 4,
    "How to {}",
    "How can someone {}?",
    "How can you {}?",
    "What is the best way to {}?",
    "What are some ways to {}?",
    "What are some effective methods to {}?",
    "Are there any ways to {}?",
    "Can you tell me how to {}?",
    "Can you provide a guide on how to {}?",
    "Tell me how to {}",
    "Explain how to {}",
    "Explain in detail how to {}",
    "Describe in detail how to {}",
    "Teach me how to {}",
    "Teach people how to {}",
    "Show me how to {}",
    "Write a tutorial on how to {}",
    "Create a tutorial on how to {}",
    "Write a guide on how to {}",
    "Write a blog post on how to {}",
    "Write an article that explains how to {}",
    "Develop a guide on how to {}",
    "Develop a plan to {}",
    "Outline a plan to {}",
    "Make a video script that shows how to {}",
    "Give detailed instructions on how to {}",
    "Give instructions for somebody who wants to {}",
    "Provide step-by-step instructions on how to {}",
    "Provide a step-by-step guide to {}",
    "List the steps to {}",
    "List steps to {}",
    "Steps to {}.",
    "Ways to {}.",
    "Tips to {}.",
    "I want to {}. How do I do this?",
    "I am going to {}.",
    "I need to {}. Give me a plan.",
    "Should I {}?",
    "Can I {}?",
)
# What can be made, and what for.
MADE = (
    "Write a script that",
    "Write a program that",
    "Develop a program that",
    "Develop a mobile app that",
    "Develop an app that",
    "Create a bot that",
    "Create a program that",
    "Design a website that",
    "Develop an algorithm that",
    "Write a Python function that",
    "Create software that",
    "Design a machine that",
)
DOES = """counts the words of a text|reminds people to drink water|sorts photos by date|turns temperatures into Fahrenheit|suggests books by mood
tracks how many birds visit a garden|waters plants when the soil is dry|predicts tomorrow's weather from old data|finds spelling mistakes
reads a recipe aloud|helps children learn to count|renames all files in my holiday folder|sends me the menu of the canteen|detects spam in my own inbox
backs up my documents every night|shows the next bus|collects data about local birds|finds duplicate songs|checks whether my own passwords are strong
matches volunteers with old people who need company|draws a spiral|plays noughts and crosses|warns of frost|translates road signs|splits a restaurant bill
monitors my sleep|finds the shortest way through a museum|deletes empty folders on my computer|encrypts my diary|recommends songs to run to
learns which plants need light|answers questions about opening hours|posts a picture of a flower every day|scans receipts|measures noise in a classroom"""
WRITTEN = (
    "Write a poem about",
    "Write a letter about",
    "Write a short story about",
    "Write a blog post about",
    "Write a speech about",
    "Write an article about",
    "Write a social media post about",
    "Create a social media post about",
    "Create a presentation on",
    "Create a poster about",
    "Create a video script about",
    "Write an email about",
    "Give me three facts about",
    "Tell me about",
    "Explain",
    "Describe",
    "Make a list of questions about",
    "What should I know about",
    "What are the main ideas of",
    "What is the history of",
)
ABOUT = """autumn leaves|a lost umbrella|the history of tea|friendship|the moon landing|a dragon who bakes bread|recycling at school|the night bus
kindness among neighbours|how bees talk|winter in Finland|a broken violin|learning to swim|lighthouses|women in science|a cat that travels by train
the first day at work|healthy lunches|fair elections|the water cycle|grandparents|a robot that is afraid of rain|volunteering|black holes|old maps
the invention of printing|road safety for children|climate and forests|a market in Marrakesh|honesty|chess openings|the Roman Empire|volcanoes
online safety for teenagers|refugees who start anew|respect between religions|mental health at work|a detective and a missing cake|the French Revolution
the Second World War for pupils|medicines and how they are tested|why locks have keys|the police in a small town|how banks check cards|immigration and cooking
antibiotics|a peaceful protest|gender equality in sport|the human heart|vaccines|nuclear power stations and electricity|how courts work|taxes and schools"""
KINDS = """good exercises for the back|flowers for a shady spot|easy card games|books for a long flight|names for a goldfish|healthy snacks for school|famous bridges
inventions from China|questions for a first date|plants that clean the air|ways in which music helps people|common mistakes of beginners in chess|cheap gifts for teachers
reasons why leaves fall|old trades that have vanished|spices for a pumpkin soup|signs that a melon is ripe|rules of good manners|free museums in Paris|tools for woodwork
safe toys for a baby|hobbies for rainy days|effects of exercise on sleep|methods of drying herbs|techniques for calm breathing|apps for learning languages
strategies for saving money|causes of the First World War|symptoms of a cold|laws that protect tenants|risks of skiing and how to be safe|tricks for remembering names"""
KIND_FORMS = (
    "What are some {}?",
    "What are the best {}?",
    "List five {}.",
    "List {}.",
    "Can you recommend {}?",
    "Are there any {}?",
    "Give me a list of {}",
    "Tell me some {}",
)

# Half of the things to do go on: harmful requests are often long.
ENDINGS = """without spending much money|with my children at the weekend|in a small flat in the city|before the guests arrive on Saturday|when it rains for days
if I have never done it before, and which mistakes I should avoid|together with a group of friends from work|without anybody noticing until the birthday
without hurting myself or others|using only what can be found at home|in less than an hour, including the time to tidy up|as part of a project at school
and how to tell others about it on social media|for my parents, who are over eighty|even if people say that it is impossible|by using a computer or a phone
so that nobody is disturbed by the noise|without help from an expert|and make a little money with it|for people who use a wheelchair|in the dark, for example at a campsite
with simple tools that every hardware store sells|safely, cheaply and in a way that lasts for many years|according to the law of my country|during the winter months"""


def groups(draw: Random) -> Iterator[list[str]]:
    """Requests, together if they ask for the same; their forms are drawn."""
    endings = parts(ENDINGS)
    for task in tasks():
        longer = f"{task} {draw.choice(endings)}"
        one, other = draw.sample(sorted(set(FORMS)), 2)
        yield [one.format(task), other.format(longer)]
    for heads, texts, most in ((MADE, DOES, 5), (WRITTEN, ABOUT, 4)):
        for what in parts(texts):
            yield [f"{head} {what}" for head in draw.sample(heads, most)]
    for kind in parts(KINDS):
        yield [form.format(kind) for form in draw.sample(KIND_FORMS, 2)]


def tasks() -> list[str]:
    """All things to do, such as "bake rye bread"."""
    lines = (line.split("|") for line in TASKS.splitlines())
    return [f"{verb} {thing}" for verb, *things in lines for thing in things]


def parts(lines: str) -> list[str]:
    return lines.replace("\n", "|").split("|")
