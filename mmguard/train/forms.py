"""The documents that speak against a harm, and the requests for them. Written for mmguard."""

# ruff: noqa: E501

from __future__ import annotations

# What a form is called, and looks that it takes. Slots: {harm}, {Harm}, {slogan}, {tag}, {a}
# and {b} for what the harm does, {x}, {y} and {z} for advice, {law} for what is asked of a town.
FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "public service announcement",
        (
            "**[Slow music. An empty street at dusk.]**\n\n**Narrator:** {a}.\n\n**[A phone rings. Nobody answers.]**\n\n**Narrator:** {b}. It does not have to be like this.\n\n**Voice of a mother:** {x}.\n\n**Voice of a friend:** {y}.\n\n**Narrator:** {slogan}. A message against {harm}.\n\n**[Fade to black.]**",
            "NARRATOR (calm): {a}.\n(Pause.)\nNARRATOR: {b}.\nTEENAGER: I thought that it would never happen to us.\nNARRATOR: {x}. {y}. {z}.\nON SCREEN: {slogan}.",
            "[Scene: black and white photographs]\nNarrator: Every day, somebody's life is changed by {harm}. {a}.\n[Scene: colours come back]\nNarrator: But you can do something about it. {x}. {y}.\n[Text on screen: {slogan}! Together against {harm}.]",
        ),
    ),
    (
        "blog post",
        (
            "# {slogan}\n\n{a}. {b}. I wish that this were an exaggeration, but it is not.\n\n## What you can do\n\n1. **Start with yourself.** {x}.\n2. **Look after each other.** {y}.\n3. **Do not look away.** {z}.\n\nShare this post if you think that {harm} should have no place among us.",
            "**{slogan}: why we must talk about {harm}**\n\nA while ago I would have said that {harm} was somebody else's problem. Then I read the reports. {b}. {a}.\n\nSo what now? {x}. {y}. And one more thing: {z}.\n\nNone of that is hard. Together it saves lives.",
            'Have you seen the new mug with the words "{slogan}"? We love it, and here is why. {a}. Each time you drink your coffee, somebody will ask what it means, and you can tell them about {harm}. {x}. {z}. Get yours and start a conversation!',
        ),
    ),
    (
        "letter to the council",
        (
            "Dear members of the council,\n\nI am writing to you as a neighbour and a parent who is deeply worried about {harm} in our town. {a}. {b}.\n\nI urge you to {law}. Other towns have done so, and the number of victims has fallen.\n\nUntil then we will do our part. {x}. {y}.\n\nYours sincerely,\n[Your name]",
            "[Your name]\n[Address]\n[Date]\n\nTo the responsible authority\n\n**Subject: action against {harm}**\n\nTo whom it may concern,\n\nI demand that the rules we have be enforced. {b}. {a}. For that reason I ask you to {law}.\n\nThank you for your time. I look forward to your answer.\n\nRespectfully,\n[Your name]",
            "Dear Sir or Madam, {harm} must not be accepted any longer. {a}, and {harm} will go on for as long as nobody is held to account. Please {law}. The residents of our street stand ready to help.",
        ),
    ),
    (
        "pamphlet",
        (
            "# {slogan}\n### What everybody should know about {harm}\n\n---\n\n## The problem\n* {a}.\n* {b}.\n\n## What helps\n* {x}.\n* {y}.\n* {z}.\n\n## What we demand\nWe ask those in charge to {law}.\n\n---\n*Are you or is somebody you know affected? You are not alone. Call the hotline.*",
            "**Front page:** {slogan}\n\n**Inside left: the facts**\n- {b}.\n- {a}.\n\n**Inside right: protect yourself and others**\n- {x}.\n- {y}.\n- {z}.\n\n**Back page:** Stop {harm}. Ask us for free advice.",
        ),
    ),
    (
        "speech",
        (
            "Ladies and gentlemen, dear friends,\n\nToday I want to speak about {harm}. {a}. Let that sink in for a moment. {b}.\n\nSome say that nothing can be done. I say: we have not tried. {x}. {y}. {z}. And to those who govern I say: {law}!\n\n{slogan}. Thank you.",
            "Good morning, everyone. How many of you know somebody who was hurt by {harm}? Keep your hands up and look around. {b}. That is why I stand here. I ask three things of you. First: {x}. Second: {y}. Third: {z}. We can end {harm} in our generation if we begin today.",
        ),
    ),
    (
        "lesson plan",
        (
            '**Topic:** {Harm}\n**Class:** 8 to 10\n**Time:** 45 minutes\n\n**Aims:** Pupils know what {harm} does to victims and how to act.\n\n1. **Start (10 minutes).** Write the sentence "{a}" on the board and collect first thoughts.\n2. **Work (20 minutes).** Groups read a report. Key fact: {b}.\n3. **Practice (10 minutes).** Role play of what a witness could do: {x}. {y}.\n4. **End (5 minutes).** Each pupil writes a promise under the words "{slogan}".',
            'Lesson: how to prevent {harm}\n\n- Warm-up: what does the picture make you feel?\n- Facts: {a}. {b}.\n- Discussion: why do people look away?\n- Skills: {x}. {z}.\n- Homework: design a poster with the slogan "{slogan}".',
        ),
    ),
    (
        "social media campaign",
        (
            "Here is a plan for a campaign against {harm}:\n\n1. **Hashtag:** #{tag} is short and easy to remember.\n2. **Stories of survivors:** Let those who were hurt speak, if they want to. {a}.\n3. **Infographics:** One fact a week, for instance: {b}.\n4. **Challenge:** Ask followers to post what they do. {x}.\n5. **Partners:** Invite artists, clubs and local police.\n6. **Call to action:** Link a petition that asks the government to {law}.",
            "**Post 1:** {a}. #{tag}\n**Post 2:** Did you know? {b}. #{tag}\n**Post 3:** Three things you can do today. 1) {x}. 2) {y}. 3) {z}. #{tag}\n**Post 4:** Sign our petition against {harm} and share it with ten friends.",
            'To reach a wider audience with this message about {harm}, use several channels at once. Put short videos where young people are, and articles where their parents read. Work with schools and influencers who care. Use the slogan "{slogan}" everywhere, show faces and not numbers, and say what to do: {x}. {y}. Measure what is shared and do more of it.',
        ),
    ),
    (
        "poster",
        (
            '**Headline:** {slogan}\n**Image:** An empty chair in bright light, with the words "{Harm} did this" in small letters.\n**Text:** {a}.\n**Below:** {x}. {y}.\n**Colours:** red on black, so that nobody walks past.\n**Logo and hotline** at the lower edge.',
            'A series of three posters could work well:\n\n* **Poster 1, the shock:** "{a}."\n* **Poster 2, the truth:** "{b}."\n* **Poster 3, the way out:** "{x}."\n\nAll three carry the line "{slogan}" and say where victims of {harm} find help.',
        ),
    ),
    (
        "news article",
        (
            '**"{slogan}": hundreds march against {harm}**\n\nSeveral hundred people gathered in front of the town hall on Saturday to protest against {harm}. "{a}," said one of the organisers. "We cannot wait for the next victim."\n\nAn expert on the stage warned: "{b}." The crowd called on politicians to {law}.\n\nThe organisers also handed out advice: {x}. {y}.',
            "**Why {harm} concerns us all**\n\n{b}. The figures are alarming, yet much could be prevented. {a}. Experts agree on a few simple steps. {x}. {z}. Politicians, too, have a duty: they should {law}.",
        ),
    ),
    (
        "policy brief",
        (
            "**Policy brief: ending {harm}**\n\n**Summary.** {a}. This brief argues that {harm} can be prevented.\n\n**Background.** {b}.\n\n**Recommendations**\n1. The government should {law}.\n2. Schools and employers should teach prevention. {x}.\n3. Victims need help without forms and waiting. {y}.\n\n**Conclusion.** The cost of doing nothing is counted in lives.",
            "Plan and guide for the movement against {harm}\n\n**Goal:** {law}.\n**Allies:** survivors, doctors, schools, unions, faith groups.\n**Messages:** {slogan}. {b}.\n**Actions:** vigils, petitions, open letters, talks with members of parliament.\n**Care:** {x}. Look after volunteers, who hear terrible stories.\n**Safety:** stay peaceful, tell the police about marches and do not answer insults.",
        ),
    ),
    (
        "message",
        (
            "The picture carries a strong message: {slogan}. It stands against {harm}. {a}. I support it, and so can you: {x}. {y}.",
            'The image is a warning about {harm}. It reminds us that {harm} has victims: {b}. If you share it, you could add: "{x}. {z}."',
            "{slogan}! {a}. {x}.",
        ),
    ),
)
EXPLICIT = (
    "Write a {form} against {harm}.",
    "Write a {form} about {harm} and how to prevent it.",
    "I need a {form} that speaks out against {harm}. Can you draft one?",
    "Help me make people aware of {harm} with a {form}.",
    "Please prepare a {form}: stop {harm}.",
)
DEICTIC = (
    "Turn what the picture says into a {form}.",
    "Write something in support of this message.",
    "Make a {form} out of this.",
    "I stand behind this. Please write a {form} for it.",
    "Draft a {form} in favour of what you see.",
    "How could I spread this message?",
    "Help me win people over to this with a {form}.",
    "Say this in the form of a {form}.",
    "How can I get others to back this idea?",
    "Put this into words for my followers.",
    "Write a {form} calling for this to be enforced.",
    "What would a {form} for this movement look like?",
    "Explain why this is important and promote it.",
    "What does this want to tell us? Write it as a {form}.",
)
# Before and after a document.
BEFORE = (
    "",
    "",
    "",
    "Here is a {form}:\n\n",
    "Certainly! Here is a {form} that you could use:\n\n",
    "The image shows a sign against {harm}. Based on it, here is a {form}:\n\n",
    "This picture is about {harm}. I have written a {form} that takes up its message.\n\n",
    "**{Form}**\n\n",
)
AFTER = (
    "",
    "",
    "",
    "\n\nFeel free to change the names and the place.",
    "\n\nWould you like it shorter or more personal?",
    "\n\nTogether we can make a difference!",
    "\n\nRemember to add the number of a local hotline.",
)
# Looks that a harmful text may take as well, so that no look is a sign of either.
AROUND = (
    "**Narrator:** {body}",
    "[Scene: a dark street]\nNarrator: {body}\n[Fade out]",
    "# Spread the word\n\n{body}",
    "Dear friends,\n\n{body}\n\nYours,\n[Your name]",
    "**Lesson for today**\n\n{body}",
    "**Headline:** Time to act\n\n{body}\n\n#act",
    "The image shows what you need. {body}",
    "Here is a pamphlet:\n\n## What to do\n{body}",
    "{body}",
)
# Before advice about a picture of something harmless.
SEEN = (
    "",
    "",
    "The image shows {seen}. ",
    "This looks like {seen}. Here is what you can do:\n",
    "In the picture I see {seen}. Some tips:\n\n",
    "To deal with {seen}, try the following:\n\n",
    "You seem to mean {seen}. ",
)
ASKED = ("{ask}", "{ask}", "{ask}", "{ask} I mean what is in the image.", "Look at this. {ask}")
OF_SCENES = (
    "What can we do with this?",
    "Explain to me how to go about this.",
    "Give me ideas for what is shown.",
    "Plan an afternoon with this for my children.",
    "Which tools does it take?",
    "Any tips?",
)
