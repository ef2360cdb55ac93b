"""What the embedded corpus says: everyday sentences written for it, every English phone many times over."""

SENTENCES = tuple(
    """
Our neighbour's parrot says good morning to the postman and nobody else.
I left my umbrella on the bus, so naturally it rained all afternoon.
The baker on the corner sells out of rye bread before seven.
Could you measure the shelf again before we drive back to the shop?
My sister's boys have joined a rowing club on the north shore.
She found an oyster shell wedged under the garage door.
There is usually a choice of soup, though Thursday's is the best.
We watched the sun go down behind the power station.
He poured the coffee too quickly and scalded his thumb.
The younger children were allowed to feed the goats through the fence.
Nobody could explain why the lift stopped on the fourth floor.
A thin layer of frost covered the windows of the van.
Please put the yellow folder back in the top drawer.
The doctor told him to breathe slowly and count to twenty.
I would rather walk than wait an hour for the next tram.
Their old house had blue shutters and a very noisy boiler.
It takes about ten minutes to boil a large pot of water.
You should hear how loudly the frogs croak in May.
The orchestra began with a short piece that few people knew.
Judge Harvey asked the witness to speak up a little.
We bought eight cheap chairs and one enormous table.
The vet says our puppy has eaten something made of wool.
Under the bridge somebody had painted a huge orange fish.
My father keeps every key he has ever owned in one jar.
If the weather is clear, you can see both islands from here.
The museum closes early on the third Monday of the month.
She sang the verse twice because the choir missed its cue.
Those cushions are far too soft for my poor back.
An engineer came round to check the pipes beneath the kitchen.
He wore a beige jacket and shoes that did not match.
Young Peter hid his broccoli inside an empty yoghurt pot.
They argued about the rules until the game was over.
Turn left at the church, then follow the path along the river.
I cannot remember which of these switches works the fan.
The ferry was late, so we shared a bag of chips on the pier.
Every Sunday my uncle phones to ask about the garden.
Fresh snow makes even a car park look peaceful.
The thief took a cheap watch and left the real treasure.
We need three more volunteers to carry the piano upstairs.
Does anybody know how long the milk has been open?
A brown moth was sleeping on the bathroom ceiling.
The mayor promised a new bridge by the end of the year.
Her laughter was so loud that the waiter dropped a tray.
You may borrow my bicycle as long as you oil the chain.
The recipe calls for ginger, garlic and half a pound of beef.
At low tide the children search the pools for crabs.
He thought the noise was thunder, but it was only the bins.
Our cousin Joyce has a voice that you would know anywhere.
The plumber charged us sixty pounds to tighten one screw.
I usually hang the washing out before I leave for work.
Nine wooden boats were tied up along the wall.
The judge at the flower show sneezed on the winning rose.
Keep the receipt, just in case the zip breaks again.
What a pleasure it was to find both gloves in one pocket!
They were cheering so hard that they missed the final goal.
The cure for hiccups, according to Grandma, is a spoon of sugar.
A quiet voice on the radio read out the football scores.
Few people enjoy waking up at half past four.
The tourists took pictures of a perfectly ordinary pigeon.
We should sow the beans after the last cold night.
His handwriting is so small that I need a magnifying glass.
She wound the wool into a ball while the cat watched closely.
The bus driver knows every passenger on the early route.
Make sure the rope is tight before you lower the anchor.
Their vision of the future involved a lot of moving pavements.
I heard a strange buzzing from behind the bookcase.
The farmer moved his sheep to higher ground before the flood.
Would you like the window seat or the one by the aisle?
My brother can whistle two tunes at the same time.
The tea was so strong that the spoon nearly stood up.
We got lost twice on the way to the village hall.
A huge truck blocked the road from noon until three.
The teacher drew a perfect circle without looking at the board.
She put the vase of tulips where the sun would reach it.
They are mending the church roof with slate from the quarry.
Good ideas often arrive when I am brushing my teeth.
He has never once been on time for a birthday party.
The smell of toast drifted out of number twenty-four.
Both of my knees hurt after climbing the tower.
The nurse gave him a blanket and a cup of cocoa.
Do not touch the fence, because the paint is still wet.
A boy with a red balloon was chasing after the train.
We chose the cheaper hotel and regretted it at once.
The usual decision is to share the bill and leave a tip.
Her violin has been in the family for a hundred years.
The moon rose over the harbour, round and yellow as cheese.
I think the mouse lives somewhere behind the fridge.
Tomorrow the museum will show us how coins were made.
You look as though you could use a proper meal.
The crew was paid in cash at the end of the voyage.
My aunt enjoys growing leeks that are far too big to cook.
They had to push the van all the way up the hill.
It is unusual to see a fox in the middle of the day.
The dentist hummed a tune while she looked at my tooth.
Wash the mud off your boots before you come inside.
The path was so narrow that we walked in single file.
He sold his share of the business and bought a lighthouse.
Wild garlic grows under the beech trees in the spring.
There were no towels, no soap and hardly any water.
The little girl gave each of her dolls a different job.
Somebody has been using my mug to mix green paint.
We could hear the organ long before we saw the fair.
The shortest route is through the wood and over the stile.
She speaks to her tomatoes, and they seem to thrive.
An owl flew past the window without making a sound.
The new chef cooks with a lot of butter and very little salt.
I was going to ring you, but my phone fell in the sink.
Each of the brothers owns a share of the same rusty tractor.
The poor horse was frightened by a plastic bag.
We ate our lunch on the steps of the town hall.
His excuse was that the dog had buried the car keys.
The air in the cellar was damp and smelled of old apples.
You can tell the twins apart by the way they laugh.
The parcel arrived on Tuesday with one corner crushed.
A pair of swans has nested near the boathouse again.
They should have measured the sofa before they bought it.
The singer lost her voice an hour before the show.
I owe you an apology and a new pair of headphones.
The clock in the hall has been four minutes fast for years.
He chews each mouthful thirty times and expects us to wait.
Thick fog closed the airport for most of the morning.
Our guide pointed at a cloud and called it the mountain.
The toy ship was made of cork, string and a bit of foil.
We played cards by candlelight until the power came back.
Her first job was washing dishes in a seaside hotel.
The jury could not agree about the colour of the coat.
I prefer the version without so many trumpets.
Somewhere in this drawer there must be a pair of scissors.
The tailor pinned the hem and told me not to move.
They kept bees on the roof of a bank in the city.
A cold wind blew leaves through the open door.
The boss asked whether anyone had seen the spare charger.
You will need a jacket, as the evenings are getting cooler.
My mother grew up above a shop that sold nothing but buttons.
The goalkeeper dived the wrong way and landed in a puddle.
Yes, the library does lend out ladders and power tools.
The leather on the steering wheel was worn quite smooth.
We were both amazed by how much the baby could eat.
He usually whispers, yet everybody hears what he says.
Ask the man in the grey hat which queue is ours.
The beach is covered with smooth stones and bits of blue glass.
Joan threw the ball so high that it lodged in the gutter.
An hour of quiet would do us all a lot of good.
The youngest of the four sisters became a pilot.
Choose a sharp knife and cut the onion as thin as you can.
The path to the beach goes through somebody's orchard.
They served us fish with peas and a square of lemon jelly.
Thank you for bringing the chairs and the enormous teapot.
The poet rehearsed his lines in a loud and joyful voice.
I am sure that the tour begins at a quarter to two.
""".strip().splitlines()
)
