"""What the English stories are made of: openings, plots as lists of beats, endings, and what fills their slots.

A plot is a list of beats; a beat is a list of wordings, any of which may stand there. Slots: `{hero}` and `{friend}`
are names, `{he}`, `{him}`, `{his}` go with the hero and `{fhe}`, `{fhis}` with the friend; `{elder}` is a relative of
the hero; the others are described where they are listed.
"""

BOYS = ["Tom", "Ben", "Jack", "Sam", "Leo", "Max", "Oliver", "Henry", "Peter", "Daniel"]
GIRLS = ["Lily", "Anna", "Mary", "Emma", "Lucy", "Sara", "Grace", "Ella", "Rose", "Nora"]

# Slots that are drawn on their own.
SLOTS: dict[str, list[str]] = {
    "trait": ["kind", "curious", "clever", "quiet", "brave", "cheerful", "young", "gentle"],
    "place": [
        "in a small village near the sea",
        "in a little house at the edge of a forest",
        "in a quiet town by a river",
        "in a white house on top of a hill",
        "on a farm in a green valley",
        "in a narrow street in a big city",
        "in a wooden house beside a lake",
    ],
    "elder": ["grandmother", "grandfather", "mother", "father", "aunt", "uncle"],
    "animal": ["rabbit", "bird", "kitten", "puppy", "duckling", "hedgehog", "squirrel"],
    "toy": ["red ball", "wooden boat", "paper kite", "silver whistle", "blue hat", "music box", "toy train"],
    "hiding": [
        "under the bed",
        "behind the garden gate",
        "in the tall grass",
        "beside the old well",
        "under the apple tree",
        "behind the kitchen door",
    ],
    "food": ["apple pie", "fresh bread", "honey cake", "corn bread", "plum cake", "cherry pie"],
    "plant": ["sunflower", "apple tree", "rose bush", "lemon tree", "cherry tree", "bean plant"],
    "skill": ["ride a bicycle", "swim", "play the flute", "fly a kite", "bake bread", "paint a horse", "sail a boat"],
    "times": ["three", "four", "five", "six", "seven"],
    "days": ["two days", "three days", "a week", "ten days", "two weeks"],
    "guide": ["an old owl", "a friendly deer", "a small fox", "a woodcutter", "a shepherd with her dog"],
    "gift": ["a warm scarf", "a clay bowl", "a picture of the sea", "a wooden spoon", "a basket of flowers"],
}

# Values of `hiding` that are inside a house; `{hiding2}` is outside.
INDOORS = ["under the bed", "behind the kitchen door"]

# (season, what one saw or felt outside)
SCENES = [
    ("spring", "the birds were singing in the trees"),
    ("spring", "white flowers were opening in the garden"),
    ("summer", "the sun was shining on the fields"),
    ("summer", "the air was warm and the sky was blue"),
    ("autumn", "yellow leaves were falling from the trees"),
    ("autumn", "a cool wind was blowing over the hills"),
    ("winter", "snow was lying on the roofs"),
    ("winter", "the pond was covered with ice"),
]

OPENINGS = [
    "Once upon a time, there was a {trait} {child} named {hero}. {He} lived {place}.",
    "Once upon a time, {place}, there lived a {trait} {child} named {hero}.",
    "Once upon a time, a {trait} {child} named {hero} lived {place} with {his} {elder}.",
    "There was once a {trait} {child} whose name was {hero}. {He} lived {place}.",
]
MORNINGS = [
    "One {season} morning, {scene}.",
    "One {season} day, {scene}, and {hero} went outside.",
    "It was {season}, and {scene}.",
]

LOST_TOY = [
    [
        "{hero} had a {toy} that {he} loved more than anything else.",
        "{his} {elder} had given {him} a {toy}, and {hero} played with it every day.",
    ],
    [
        "But that day the {toy} was gone.",
        "That day {he} looked for the {toy}, but it was not in its place.",
    ],
    ["{hero} felt very sad.", '"Where can it be?" {he} asked.', "{hero} sat down and began to cry."],
    [
        '{his} friend {friend} came by and said, "Do not worry. I will help you look for it."',
        '"Let us look for it together," said {his} friend {friend}.',
    ],
    [
        "They looked in the house, and they looked in the garden.",
        "They asked the neighbours, but nobody had seen the {toy}.",
        "They searched all morning, and they did not give up.",
    ],
    [
        "At last {friend} looked {hiding}. There was the {toy}!",
        "Then {friend} saw something {hiding}. It was the {toy}!",
    ],
    [
        '"Thank you, {friend}," said {hero}. "You are a good friend."',
        "{hero} was so happy that {he} danced around the garden.",
    ],
    [
        "From that day on, {hero} and {friend} played with the {toy} together.",
        "After that, {hero} always put the {toy} back in its place.",
    ],
]

HURT_ANIMAL = [
    [
        "On the way to school, {hero} heard a small sound {hiding2}.",
        "While {he} was walking, {hero} saw something move {hiding2}.",
    ],
    ["It was a little {animal} with a hurt leg.", "In front of {him} sat a little {animal} that could not walk."],
    [
        "{hero} picked it up and carried it home.",
        '"Poor little {animal}," said {hero}, and {he} took it home in {his} coat.',
    ],
    [
        "{his} {elder} washed the leg and tied a clean cloth around it.",
        "{his} {elder} showed {him} how to take care of it.",
    ],
    [
        "Every day {hero} gave the {animal} food and water.",
        "{hero} made a soft bed for the {animal} in a box.",
        "At night {he} put the box next to {his} bed, so that the {animal} would not be alone.",
    ],
    ["After {days}, the {animal} could walk again.", "{days} later, the leg was well again."],
    [
        "{hero} opened the door and let the {animal} go.",
        "It was time to say goodbye, and {hero} took the {animal} back to the place where {he} had found it.",
    ],
    [
        "But the {animal} did not forget. It came back every morning to visit {hero}.",
        "The {animal} looked back once, as if it wanted to say thank you.",
        "{hero} missed it, but {he} was glad that the {animal} was free.",
    ],
]

SEED = [
    [
        '{his} {elder} gave {him} a small seed. "If you take care of it, it will become {a_plant}," {elder_he} said.',
        "{hero} found a small seed in {his} pocket and asked {his} {elder} what it was. It was the seed of {a_plant}.",
    ],
    [
        "{hero} dug a hole in the garden and put the seed into it.",
        "{hero} planted the seed near the wall, where the sun was warm.",
    ],
    ["{he} gave it water every day.", "Every morning {he} gave it a cup of water."],
    [
        "For {days}, nothing happened.",
        "After {days}, there was still nothing to see.",
    ],
    [
        '"Why does it not grow?" asked {hero}. "Be patient," said {his} {elder}.',
        '{his} friend {friend} laughed and said, "Nothing will ever grow there." But {hero} did not stop.',
    ],
    [
        "Then one morning {hero} saw a tiny green leaf.",
        "At last a small green leaf came out of the ground.",
    ],
    [
        "The little plant grew taller and taller.",
        "It grew a little more every week.",
    ],
    [
        "In the end there was a beautiful {plant} in the garden, and everybody came to see it.",
        "When the {plant} was as tall as {hero}, {he} showed it to {his} friend {friend}.",
    ],
    ["{hero} had learned to be patient.", "Good things take time, and {hero} knew that now."],
]

SHARING = [
    [
        "{his} {elder} had made {food} for lunch.",
        "{hero} took some {food} to school, because it was {his} favourite food.",
    ],
    [
        "At noon {he} saw that {friend} was sitting alone and had nothing to eat.",
        "At noon {friend} opened {fhis} bag, but it was empty. {fHe} had left {fhis} lunch at home.",
    ],
    ['"Are you hungry?" asked {hero}.', "{hero} went over to {friend} and sat down."],
    [
        '"Yes, I am," said {friend} in a small voice.',
        "{friend} nodded and looked at the ground.",
    ],
    [
        "{hero} cut the food into two parts and gave the bigger one to {friend}.",
        '"Then let us share," said {hero}, and {he} gave {friend} half of the {food}.',
    ],
    ["They ate together and told each other stories.", "{friend} smiled, and they ate together under a tree."],
    [
        "The next day {friend} brought some {food2}, and they shared that too.",
        "The next day {friend} came with {food2} for both of them.",
    ],
    [
        "From then on they were the best of friends.",
        "{hero} found that food tastes better when it is shared.",
    ],
]

LEARNING = [
    [
        "More than anything, {hero} wanted to learn how to {skill}.",
        "All the other children could {skill}, but {hero} could not.",
    ],
    [
        '{he} asked {his} {elder} for help. "I will teach you," said {his} {elder}.',
        '"Can you teach me how to {skill}?" {he} asked {his} {elder}.',
    ],
    [
        "The first time, everything went wrong.",
        "It was much harder than {hero} had thought.",
        "At first {hero} made one mistake after another.",
    ],
    [
        '"I will never learn it," said {hero}.',
        "{hero} wanted to give up.",
    ],
    [
        '"Try once more," said {his} {elder}. "Nobody learns in one day."',
        '{his} friend {friend} said, "I needed {days} to learn it. Try again."',
    ],
    [
        "So {hero} tried {times} times, and each time it went a little better.",
        "{hero} practised every day for {days}.",
    ],
    [
        "Then, one day, {he} could do it!",
        "At last it worked, and {hero} laughed out loud.",
    ],
    [
        "{his} friend {friend} clapped, and {his} {elder} was proud of {him}.",
        "Now {hero} could {skill} as well as anybody.",
    ],
    [
        "{hero} never forgot that practice is the best teacher.",
        'When other children wanted to give up, {hero} told them, "Try once more."',
    ],
]

LOST_IN_FOREST = [
    [
        "{hero} and {friend} went into the forest to look for mushrooms.",
        "{hero} went for a walk in the forest with {his} friend {friend}.",
    ],
    [
        "They walked and walked, and soon they did not know where they were.",
        "When they wanted to go home, they could not find the path.",
    ],
    ["It was getting dark, and {friend} was afraid.", "The sun went down, and the forest was very quiet."],
    [
        '"Stay close to me," said {hero}. "We will find the way."',
        '{hero} took {friend} by the hand and said, "Do not be afraid."',
    ],
    [
        "Then they met {guide}.",
        "Suddenly {guide} stood in front of them.",
    ],
    [
        '"Where do you want to go?" asked their new friend. "Home," said {hero}.',
        '"We are lost," said {hero}. "Can you help us?"',
    ],
    [
        '"Follow the stream," was the answer. "It will lead you out of the forest."',
        '"Come with me," was the answer, and they walked along a stream until they saw lights.',
    ],
    [
        "Before the moon was high, they were home again.",
        "At last they saw the house, and {hero} ran to {his} {elder}.",
    ],
    [
        "{his} {elder} gave them hot soup, and they slept well that night.",
        '{his} {elder} was very glad. "Next time, tell me where you are going," {elder_he} said.',
    ],
]

GIFT = [
    [
        "The next day was the birthday of {his} {elder}, and {hero} had no money for a present.",
        "{hero} wanted to give {his} {elder} a present, but {his} pockets were empty.",
    ],
    [
        '"What can I do?" {he} asked {his} friend {friend}.',
        "{he} thought about it for a long time.",
        "{he} went to {his} friend {friend} and asked for advice.",
    ],
    [
        '"Make something yourself," said {friend}.',
        'Then {his} friend {friend} had an idea. "You can make a present with your own hands," {fhe} said.',
    ],
    [
        "So {hero} worked all afternoon and made {gift}.",
        "{hero} stayed in {his} room until the evening and made {gift}.",
    ],
    [
        "It was not perfect, but it was made with love.",
        "It took a long time, and {he} had to begin again {times} times.",
    ],
    [
        "In the morning {he} gave it to {his} {elder}.",
        '"Happy birthday!" said {hero} the next morning.',
    ],
    [
        '"This is the best present of all," said {his} {elder}, and {elder_he} gave {him} a hug.',
        "{his} {elder} smiled and kept the present near the window, where everybody could see it.",
    ],
    [
        "{hero} learned that a present does not have to cost much.",
        "{hero} and {friend} ate {food} and laughed until the evening.",
    ],
]

# Each plot, with the seasons in which it can happen.
PLOTS = [
    (LOST_TOY, ["spring", "summer", "autumn", "winter"]),
    (HURT_ANIMAL, ["spring", "summer", "autumn"]),
    (SEED, ["spring"]),
    (SHARING, ["spring", "summer", "autumn"]),
    (LEARNING, ["spring", "summer", "autumn"]),
    (LOST_IN_FOREST, ["autumn"]),
    (GIFT, ["spring", "summer", "autumn", "winter"]),
]

# Fables: (the proud one, the steady one, what they do, where)
RIVALS = [
    ("hare", "tortoise", "run a race", "to the old oak tree"),
    ("fox", "snail", "run a race", "to the garden wall"),
    ("horse", "donkey", "carry wood", "to the village"),
    ("eagle", "sparrow", "fly", "to the top of the hill"),
    ("swan", "duck", "swim", "to the island"),
    ("deer", "hedgehog", "run a race", "to the river"),
]
FABLE_SEASONS = ["spring", "summer", "autumn"]
FABLE = [
    [
        "Once upon a time, {a_proud} and {a_steady} lived {home}.",
        "Long ago, {home}, there lived {a_proud} and {a_steady}.",
    ],
    [
        'The {proud} was proud and often said, "Nobody is as fast as I am."',
        "Every day the {proud} laughed at the {steady}, because the {steady} was slow.",
    ],
    [
        '"Let us {contest} {goal}," said the {steady} one {season} morning. "Then we will see."',
        'One {season} day the {steady} said, "I would like to {contest} with you {goal}."',
    ],
    ["The {proud} laughed, but agreed.", '"You will lose," said the {proud}, and they began.'],
    [
        "Soon the {proud} was far ahead. The {steady} was not in a hurry.",
        "The {proud} was out of sight at once. The {steady} went on, little by little.",
    ],
    [
        'After a while the {proud} thought, "I have plenty of time," and took a nap.',
        "Halfway there, the {proud} stopped to eat, to rest and to look at the clouds.",
    ],
    [
        "The {steady} did not stop once, and passed the {proud} without a sound.",
        "The {steady} was tired, but never stopped.",
    ],
    [
        "When the {proud} finally arrived {goal2}, the {steady} was already there.",
        "All the animals cheered when the {steady} arrived first.",
    ],
    [
        '"I was too proud," said the {proud}. "You have won."',
        "From that day on, the {proud} never laughed at the {steady} again.",
    ],
    ["Slow and steady wins the race.", "It is better to be steady than to be proud."],
]
HOMES = ["in a green forest", "near a wide river", "at the foot of a mountain", "not far from the sea"]
