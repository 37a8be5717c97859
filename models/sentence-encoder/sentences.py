"""Pairs of sentences that say alike, each among others about the same things: written for this project."""

from __future__ import annotations

PAIRS = """
The train to Zurich leaves at nine in the morning. | At nine o'clock the express departs for Zurich.
The train to London is half an hour late. | Passengers for London have to wait thirty minutes more.
There is no dining car on the night train. | You cannot get a meal on the sleeper.
Tickets can be bought from the machine on platform two. | A vending machine on the second platform sells fares.
The conductor checked everybody's ticket. | All travellers had to show their fare to the guard.
Our flight was cancelled because of fog. | Thick mist kept the plane on the ground, so we did not fly.
My suitcase did not arrive with the plane. | The airline lost my luggage.
The hotel is five minutes on foot from the station. | From the railway one walks to the inn in no time.
We would like a room with two beds for three nights. | Could we stay until Thursday in a twin room?
Breakfast is served until ten. | In the morning you may eat before ten o'clock.
Boil the potatoes for twenty minutes. | The potatoes need to cook in hot water for a third of an hour.
Bake the bread until its crust is brown. | Leave the loaf in the oven till it is golden outside.
Add a pinch of salt to the soup. | The broth wants a little more salt.
She drinks her coffee without sugar. | No sweetener for her in the espresso, please.
The milk has gone sour. | This milk is spoiled and smells bad.
He is allergic to nuts. | Peanuts and almonds make him ill.
The restaurant is closed on Mondays. | One cannot dine there at the beginning of the week.
The waiter brought the bill. | After the meal we were told what we had to pay.
It will rain all day tomorrow. | The forecast for the next day is wet from morning to night.
Snow has blocked the mountain road. | The pass cannot be driven because of the snow.
A storm tore the roof off the barn. | Strong wind left the farm building without a roof.
It has not rained since May, and the wells are dry. | The drought has lasted for months and there is no water left.
The river rose over its banks. | The town by the stream was flooded.
Last night the temperature fell below zero. | There was frost overnight.
The doctor told him to stay in bed for a week. | He was ordered to rest for seven days by his physician.
Take one tablet after each meal. | The pills are to be swallowed when you have eaten.
She broke her arm when she fell off the horse. | A riding accident left her with a fractured limb.
The nurse measured his blood pressure. | How hard his blood presses was taken by a medical assistant.
The child has had a fever for two days. | Since the day before yesterday the little one has been hot and ill.
The dentist pulled a tooth. | One of my molars was taken out.
The bank has raised its interest rate. | Borrowing money from the bank costs more than before.
The invoice must be paid within thirty days. | Please settle the bill in a month at the latest.
He lost all his savings on the stock market. | Speculating with shares cost him everything that he had put aside.
The rent goes up by five per cent next year. | Living in this flat will be dearer from January on.
The shop gave me my money back. | I got a refund from the store.
Prices of electricity differ from hour to hour. | What power costs depends on the time of the day.
The company hired forty engineers this year. | Forty new technical people joined the firm.
She resigned because her boss shouted at her. | The rude manager made her quit.
The meeting was moved to Friday afternoon. | We shall talk at the end of the week instead, after lunch.
The factory builds three hundred cars a day. | Each day hundreds of automobiles leave the plant.
The printer is out of paper. | Somebody has to put new sheets into the printer.
My password does not work any more. | I cannot log in, since what I type as the secret word is refused.
The server answers too slowly under load. | When many requests come in, response times become long.
One of the disks failed, but no data were lost. | A drive broke and everything on it could be restored.
The update made the program crash at start. | Since the new version was installed the software does not open.
The backup runs every night at two. | Copies of all files are made in the small hours of each day.
The network between both offices was cut. | The two sites could not reach each other.
The telephone battery lasts only half a day. | My mobile has to be charged by noon.
The pupils wrote a test about fractions. | In the mathematics class there was an exam on parts of whole numbers.
Our teacher speaks four languages. | The woman who instructs us knows four tongues.
The library lends books for four weeks. | You may keep a borrowed volume for about a month.
The professor's lecture was hard to follow. | Hardly anybody understood what was taught at the university.
She learned to play the violin at the age of five. | As a small child she was taught the fiddle.
The museum shows paintings of the seventeenth century. | Pictures from the age of Rembrandt hang in the gallery.
The orchestra played the symphony without a mistake. | The musicians performed the whole work flawlessly.
The film is about a sailor who comes home after the war. | This movie tells of a seaman's return after years of battle.
The home team won by two goals to one. | The hosts scored twice and beat their guests.
He ran the marathon in under three hours. | Forty-two kilometres took him less than a hundred and eighty minutes.
The champion hurt her knee and cannot compete. | An injured leg keeps the title holder out of the tournament.
The referee gave him a red card. | He was sent off the field.
The dog barks at every stranger. | Whoever it does not know is greeted loudly by our hound.
The cat sleeps on the warm roof of the car. | A kitten is napping on top of the vehicle.
Bees find their way home by the sun. | Honey-making insects navigate by daylight.
The farmer sold his cows and grows apples now. | Instead of keeping cattle, he has an orchard.
"""

TEXTS = [text.strip() for line in PAIRS.strip().splitlines() for text in line.split("|")]
# By text, the number of its pair.
PAIR = [number // 2 for number in range(len(TEXTS))]
