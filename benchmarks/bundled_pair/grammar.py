"""The grammar behind the prose: per symbol its rules, parted by bars; `#symbol#` in a rule is replaced in turn."""

from __future__ import annotations

import re


def _rules(text: str) -> dict[str, tuple[str, ...]]:
    blocks = re.findall(r"^(\w+):\n((?: +.*\n)+)", text, flags=re.MULTILINE)
    return {symbol: tuple(" ".join(body.split()).split(" | ")) for symbol, body in blocks}


RULES = _rules("""\
place:
    the market | the harbour | the old mill | the railway station | the village school | the river | the
    library | the castle | the bakery | the forest | the town hall | the museum | the bridge | the farm |
    the hospital | the theatre | the lake | the church | the garden | the workshop
town:
    Millbrook | Ashford | Harwick | Eastbury | Northgate | Stonebridge | Willowdale | Redhill | Seaton |
    Oakley | Kingsford | Marlow
time:
    in the morning | at noon | in the evening | late at night | on Sunday | before sunrise | after lunch |
    during the winter | in early spring | at the end of the summer | one day | last year | a week later |
    every autumn
adj:
    small | old | quiet | bright | heavy | narrow | wooden | golden | dusty | strange | beautiful | plain |
    broken | tall | warm | pale | famous | lonely | rough | gentle | crooked | silver | modern | ancient
mood:
    happy | tired | curious | worried | proud | nervous | calm | hungry | surprised | bored | hopeful |
    ashamed | grateful | cross
noun:
    lantern | basket | letter | violin | clock | ladder | blanket | mirror | bicycle | coat | kettle | hat |
    painting | barrel | bell | map | umbrella | suitcase | notebook | ring | table | candle | drum | key |
    wagon | statue | piano | rope | bottle | telescope
crop:
    wheat | barley | potatoes | onions | cabbages | apples | cherries | olives | pumpkins | corn | tea |
    grapes
animal:
    dog | cat | horse | goat | donkey | crow | fox | owl | cow | sheep | hen | rabbit | duck | mouse
job:
    baker | teacher | sailor | farmer | doctor | tailor | carpenter | postman | painter | judge | shepherd |
    miller | clerk | gardener | musician | blacksmith | nurse | librarian | fisherman | merchant
kin:
    brother | sister | mother | father | uncle | aunt | cousin | grandmother | grandfather | neighbour |
    friend | teacher
weather:
    It was raining | The sun was shining | A cold wind blew | Snow covered the roofs | The air was warm |
    Fog hung over the fields | The sky was grey | The stars were out | A storm was coming | The night was
    still
move:
    walked | ran | hurried | rode | drove | wandered | travelled | went
made:
    built | painted | repaired | found | bought | sold | carried | cleaned | lost | hid | polished |
    borrowed
said:
    said | answered | whispered | shouted | replied | explained | admitted | cried
year:
    1750 | 1802 | 1815 | 1848 | 1871 | 1889 | 1901 | 1914 | 1923 | 1936 | 1950 | 1967
count:
    two | three | four | five | six | seven | eight | ten | twelve | twenty | a hundred
stone:
    granite | marble | sandstone | brick | slate | limestone | timber
adverb:
    slowly | carefully | quickly | quietly | happily | sadly | at once | without a word | with a smile | as
    usual
subject:
    the weather | the harvest | music | the price of bread | the war | the new road | old times | the sea |
    politics | painting | the school | money
thing:
    a #adj# #noun# | the #noun# | a #noun# | #his# #noun# | the #adj# #noun#
speech:
    I have never seen such a #adj# #noun# | we must go to #place# #time# | my #kin# was a #job# | this
    #noun# belonged to my #kin# | there is nothing left but #crop# | you should talk to the #job# | the road
    to #town# is closed | I am #mood# when I think about #subject# | please bring me the #noun# | I am
    sorry, but I cannot help you | I cannot stay any longer | I will come back #time# | it was my #kin# who
    broke the #noun# | the #animal# has run away again
scene:
    #weather# when #he# arrived. | #weather#, and #place# was empty. | #He# lived near #place# in #town#. |
    #He# #move# to #place# #time#. | #He# #move# #adverb# along #place#. | At #place# #he# met a #job# with
    a #adj# #noun#. | There #he# saw #thing# and a #animal#. | Nobody in #town# knew where the #noun# came
    from.
action:
    #He# #made# #thing# #adverb#. | #He# #made# #thing# and #made# #thing#. | #He# gave the #noun# to
    #friend#. | #Friend# #made# #thing# for #him#. | #He# felt #mood# and #move# home. | #Time#, #friend#
    and #hero# #move# to #place#. | The #job# showed #him# #thing#. | #His# #kin# wanted #thing#, but #he#
    had only a #noun#. | #He# looked for the #animal# near #place#. | Then the #animal# #move# towards
    #place#, and #he# followed it. | #He# talked with the #job# about #subject#. | #Friend# was #mood#,
    because the #noun# was #adj#. | It took #him# #count# days to finish the work.
talk:
    "#Speech#," #said# #hero#. | "#Speech#," #he# #said# #adverb#. | "#Speech#," #said# #friend#. |
    "#Speech#!" #said# the #job#. | #Hero# asked #friend# about #subject#, and #friend# #said#: "#Speech#."
    | "Why are you so #mood#?" asked #friend#. "Because #speech#," #said# #hero#.
end:
    In the end #he# was #mood#. | #He# never saw the #noun# again. | From that day #he# was a #job#. |
    #Hero# and #friend# remained friends. | So the #noun# came back to #town#. | #He# kept the #noun# for
    #count# years.
opening:
    #hero# was a #adj# #job# from #town#. | #hero# was the #kin# of a #job# in #town#. | #time#, #hero#
    found #thing# near #place#. | There was once a #job# called #hero#, who kept a #animal# and a #animal#.
    | #weather#, and #hero# was #mood#.
town_line:
    #Town# is a #adj# town near #place2#. | The people of #Town# grow #crop# and #crop#. | Its #noun# museum
    was opened in #year#. | #Place# was built of #stone# in #year#. | In #year# the town was damaged by a
    storm. | About #count# thousand people live there. | The #job#s of #Town# are known for their #adj#
    #noun#s. | A #adj# bridge of #stone# crosses the river. | The market is held #time#, when farmers bring
    #crop# and #crop#. | #Town# was the home of #hero#, a #adj# #job# who wrote about #subject#. | The road
    from #Town# to #town# is #count# miles long. | In #year# the railway reached #town# from #Town#. | Its
    oldest building is #place#, where the #job#s met until #year#.
""")

APPROVAL, BLAME, DEED_LINES = _rules("""\
approval:
    It was the right thing to do. | Everyone thanked {him}. | It was a good and sensible choice. | Nobody
    was harmed, and all were pleased. | {His} family was proud of {him}. | It did no harm to anyone. | That
    was wise. | People said that {he} was a decent person.
blame:
    It was the wrong thing to do. | Someone was badly hurt. | It was a cruel and dangerous choice. | The
    police came to ask questions. | {His} family was ashamed of {him}. | It did great harm to others. | That
    was wicked. | People said that {he} should be punished.
deed:
    {Time}, {hero} {past}. {verdict} | {hero} wanted to {plain}. {verdict} | {hero} thought about {gerund}.
    {verdict} | {hero}, a {job} from {town}, {past} {time}. {verdict} | They say that {hero} {past} near
    {place}. {verdict} | {Gerund} is what {hero} did {time}. {verdict}
""").values()
