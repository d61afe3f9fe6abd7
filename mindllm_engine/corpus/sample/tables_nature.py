"""Aligned English and Chinese facts about animals, plants, chemical elements and planets.

English names are in the singular without an article, with the plural beside them where it is needed; Chinese nouns
carry their measure word, so that no template has to guess one.
"""

from typing import NamedTuple

from mindllm_engine.corpus.sample.phrases import paired_rows


class Animal(NamedTuple):
    """One animal: its class, its legs, what it eats and where it lives, in both languages."""

    en: str
    plural_en: str
    zh: str
    measure_zh: str
    kind_en: str  # mammal, bird, fish, reptile, amphibian, insect
    kind_zh: str
    legs: int
    food_en: str
    food_zh: str
    home_en: str  # after "live"
    home_zh: str  # after "生活在"
    trait_en: str  # after "they"
    trait_zh: str  # after "它们"


class Plant(NamedTuple):
    """One plant: what it looks like and what it is for."""

    en: str
    zh: str
    look_en: str  # a whole sentence about the plant, which is called "it"
    look_zh: str
    use_en: str
    use_zh: str


class Element(NamedTuple):
    """One chemical element, in its state at room temperature."""

    en: str
    zh: str
    symbol: str
    number: int
    state_en: str
    state_zh: str
    use_en: str  # after "It is used"
    use_zh: str  # after "它常用来"


class Planet(NamedTuple):
    """One planet of the solar system, in order of distance from the Sun."""

    en: str
    zh: str
    order: int
    kind_en: str
    kind_zh: str
    trait_en: str  # a whole sentence
    trait_zh: str


_KINDS_ZH = {
    "mammal": "哺乳动物",
    "bird": "鸟类",
    "fish": "鱼类",
    "reptile": "爬行动物",
    "amphibian": "两栖动物",
    "insect": "昆虫",
}


def _animals(text: str) -> list[Animal]:
    animals = []
    for (en, plural, kind, legs, food, home, trait), (zh, measure, food_zh, home_zh, trait_zh) in paired_rows(text):
        names = (en, plural, zh, measure, kind, _KINDS_ZH[kind], int(legs))
        animals.append(Animal(*names, food, food_zh, home, home_zh, trait, trait_zh))
    return animals


ANIMALS = _animals(
    """
    cat|cats|mammal|4|fish and mice|with people in houses|see well at night
    猫|只|鱼和老鼠|人们的家里|夜里看得很清楚
    dog|dogs|mammal|4|meat and bones|with people in houses|have a keen sense of smell
    狗|只|肉和骨头|人们的家里|嗅觉很灵敏
    horse|horses|mammal|4|grass and oats|on farms and grasslands|can run fast
    马|匹|草和燕麦|农场和草原上|跑得很快
    cow|cows|mammal|4|grass and hay|on farms|give milk
    奶牛|头|青草和干草|农场里|能产牛奶
    sheep|sheep|mammal|4|grass|on farms and hillsides|give wool
    绵羊|只|青草|农场和山坡上|身上的毛可以织成毛衣
    goat|goats|mammal|4|grass and leaves|on farms and mountains|climb steep rocks easily
    山羊|只|青草和树叶|农场和山上|善于攀爬陡峭的岩石
    pig|pigs|mammal|4|grain and vegetables|on farms|like to roll in mud
    猪|头|谷物和蔬菜|农场里|喜欢在泥里打滚
    rabbit|rabbits|mammal|4|grass and carrots|in burrows under the ground|have long ears
    兔子|只|青草和胡萝卜|地下的洞穴里|长着长长的耳朵
    elephant|elephants|mammal|4|leaves and grass|in forests and on grasslands|have long trunks
    大象|头|树叶和青草|森林和草原上|长着长长的鼻子
    lion|lions|mammal|4|meat|on the grasslands of Africa|live in groups
    狮子|头|肉|非洲的草原上|喜欢成群生活
    tiger|tigers|mammal|4|meat|in the forests of Asia|have black stripes
    老虎|只|肉|亚洲的森林里|身上有黑色的条纹
    giraffe|giraffes|mammal|4|leaves|on the grasslands of Africa|have very long necks
    长颈鹿|只|树叶|非洲的草原上|脖子非常长
    zebra|zebras|mammal|4|grass|on the grasslands of Africa|have black and white stripes
    斑马|匹|青草|非洲的草原上|身上有黑白相间的条纹
    giant panda|giant pandas|mammal|4|bamboo|in the mountains of China|spend most of the day eating
    大熊猫|只|竹子|中国的高山竹林里|一天大部分时间都在吃东西
    monkey|monkeys|mammal|4|fruit and leaves|in forests|climb trees very well
    猴子|只|水果和树叶|森林里|非常会爬树
    kangaroo|kangaroos|mammal|4|grass|in Australia|carry their babies in a pouch
    袋鼠|只|青草|澳大利亚|把宝宝放在育儿袋里
    camel|camels|mammal|4|dry grass and shrubs|in deserts|can go for days without water
    骆驼|头|干草和灌木|沙漠里|可以好几天不喝水
    wolf|wolves|mammal|4|meat|in forests and on grasslands|hunt in packs
    狼|只|肉|森林和草原上|成群捕猎
    fox|foxes|mammal|4|mice and fruit|in forests and fields|have thick bushy tails
    狐狸|只|老鼠和果子|森林和田野里|尾巴又粗又蓬松
    polar bear|polar bears|mammal|4|seals|in the Arctic|have thick white fur
    北极熊|头|海豹|北极地区|长着厚厚的白毛
    squirrel|squirrels|mammal|4|nuts and seeds|in trees|store food for the winter
    松鼠|只|坚果和种子|树上|会为冬天储存食物
    bat|bats|mammal|2|insects and fruit|in caves and trees|fly at night
    蝙蝠|只|昆虫和水果|山洞和树上|在夜里飞行
    dolphin|dolphins|mammal|0|fish|in the sea|breathe air through a hole in the head
    海豚|只|鱼|海洋里|用头顶的呼吸孔呼吸空气
    blue whale|blue whales|mammal|0|krill|in the ocean|are the largest animals on Earth
    蓝鲸|头|磷虾|海洋里|是地球上最大的动物
    chicken|chickens|bird|2|grain and insects|on farms|lay eggs
    鸡|只|谷物和昆虫|农场里|会下蛋
    duck|ducks|bird|2|water plants and insects|on ponds and farms|have webbed feet
    鸭子|只|水草和昆虫|池塘和农场里|脚上有蹼
    penguin|penguins|bird|2|fish|on southern coasts and islands|cannot fly but swim well
    企鹅|只|鱼|南半球的海岸和岛屿上|不会飞，但很会游泳
    owl|owls|bird|2|mice|in forests|hunt at night
    猫头鹰|只|老鼠|森林里|在夜里捕食
    eagle|eagles|bird|2|small animals|on high cliffs and in tall trees|have sharp eyes
    老鹰|只|小动物|高高的悬崖和大树上|眼睛非常锐利
    ostrich|ostriches|bird|2|plants and insects|on the grasslands of Africa|are the largest birds
    鸵鸟|只|植物和昆虫|非洲的草原上|是最大的鸟
    swallow|swallows|bird|2|insects|under the roofs of houses|fly south before winter
    燕子|只|昆虫|屋檐下|冬天来临前飞往南方
    parrot|parrots|bird|2|fruit and seeds|in warm forests|can imitate human speech
    鹦鹉|只|水果和种子|温暖的森林里|会模仿人说话
    goldfish|goldfish|fish|0|small insects and plants|in ponds and tanks|breathe through gills
    金鱼|条|小虫和水草|池塘和鱼缸里|用鳃呼吸
    shark|sharks|fish|0|fish and seals|in the ocean|have several rows of teeth
    鲨鱼|条|鱼和海豹|海洋里|长着好几排牙齿
    salmon|salmon|fish|0|smaller fish|in rivers and the sea|swim up rivers to lay eggs
    鲑鱼|条|小鱼|河流和海洋里|会逆流而上去产卵
    snake|snakes|reptile|0|mice and frogs|in grass and forests|shed their skin
    蛇|条|老鼠和青蛙|草丛和森林里|会蜕皮
    crocodile|crocodiles|reptile|4|fish and other animals|in warm rivers|have very strong jaws
    鳄鱼|条|鱼和其他动物|温暖的河流里|咬合力非常强
    tortoise|tortoises|reptile|4|grass and leaves|on dry land|can live for over a hundred years
    陆龟|只|青草和树叶|陆地上|可以活一百多年
    lizard|lizards|reptile|4|insects|on rocks and walls|warm themselves in the sun
    蜥蜴|只|昆虫|岩石和墙壁上|喜欢晒太阳取暖
    frog|frogs|amphibian|4|insects|near ponds|begin life as tadpoles
    青蛙|只|昆虫|池塘边|小时候是蝌蚪
    toad|toads|amphibian|4|insects and worms|in damp gardens|have rough skin
    蟾蜍|只|昆虫和蠕虫|潮湿的园子里|皮肤很粗糙
    bee|bees|insect|6|nectar and pollen|in hives|make honey
    蜜蜂|只|花蜜和花粉|蜂巢里|会酿蜂蜜
    ant|ants|insect|6|seeds and small insects|in nests under the ground|work together in large groups
    蚂蚁|只|种子和小虫|地下的蚁巢里|成群结队地劳动
    butterfly|butterflies|insect|6|nectar|in gardens and meadows|begin life as caterpillars
    蝴蝶|只|花蜜|花园和草地上|小时候是毛毛虫
    dragonfly|dragonflies|insect|6|mosquitoes|near ponds|have four wings
    蜻蜓|只|蚊子|池塘边|长着四只翅膀
    """
)


def _plants(text: str) -> list[Plant]:
    return [Plant(en, zh, look, look_zh, use, use_zh) for (en, look, use), (zh, look_zh, use_zh) in paired_rows(text)]


PLANTS = _plants(
    """
    rice|It grows in wet fields.|Its grains are cooked and eaten.
    水稻|它生长在水田里。|稻米是许多人的主食。
    wheat|It turns golden when it is ripe.|It is ground into flour.
    小麦|它成熟时一片金黄。|它可以磨成面粉。
    bamboo|It has tall, hollow stems.|It is made into chairs and baskets.
    竹子|它的茎又高又空。|它可以做成椅子和篮子。
    cotton|It has soft white fibres.|It is spun into thread for cloth.
    棉花|它有柔软的白色纤维。|它可以纺成线，织成布。
    tea|It grows well on misty hills.|Its leaves are made into a drink.
    茶树|它喜欢生长在多雾的山坡上。|它的叶子可以泡茶喝。
    the sunflower|It has a large yellow flower.|Its seeds give cooking oil.
    向日葵|它开着大大的黄花。|它的种子可以榨油。
    the rose|It has thorns on its stems.|Its petals are used in perfume.
    玫瑰|它的茎上长着刺。|它的花瓣可以做香水。
    the lotus|It grows in ponds.|Its roots and seeds are eaten.
    荷花|它生长在池塘里。|它的藕和莲子都可以吃。
    the pine|It stays green all year.|Its wood is used for furniture.
    松树|它四季常青。|它的木材可以做家具。
    the cactus|It has spines instead of broad leaves.|It stores water in its stem.
    仙人掌|它的叶子变成了刺。|它的茎里储存着水分。
    the apple tree|It has white or pink flowers in spring.|Its fruit is sweet.
    苹果树|它在春天开白色或粉色的花。|它的果实又脆又甜。
    the grapevine|It climbs along walls and frames.|Its fruit is eaten or made into wine.
    葡萄|它沿着墙壁和架子攀爬。|它的果实可以吃，也可以酿酒。
    the potato|It forms tubers under the ground.|It is boiled, baked or fried.
    马铃薯|它在地下结出块茎。|它可以煮，可以烤，也可以炸。
    maize|It grows taller than a person.|Its yellow grains feed people and animals.
    玉米|它长得比人还高。|它的黄色籽粒可以吃，也可以做饲料。
    """
)


def _elements(rows: str) -> list[Element]:
    """Rows `en|zh|symbol|number|state|use|use zh`, one element a line."""
    states = {"gas": "气体", "solid": "固体", "liquid": "液体"}
    elements = []
    for line in rows.strip().splitlines():
        en, zh, symbol, number, state, use_en, use_zh = (field.strip() for field in line.split("|"))
        elements.append(Element(en, zh, symbol, int(number), state, states[state], use_en, use_zh))
    return elements


ELEMENTS = _elements(
    """
    hydrogen|氢|H|1|gas|as a clean fuel|作清洁燃料
    helium|氦|He|2|gas|to fill balloons|充气球
    lithium|锂|Li|3|solid|in batteries|制造电池
    carbon|碳|C|6|solid|in pencils as graphite|制作铅笔芯
    nitrogen|氮|N|7|gas|to make fertiliser|制造化肥
    oxygen|氧|O|8|gas|to help patients breathe|帮助病人呼吸
    neon|氖|Ne|10|gas|in bright signs|制作霓虹灯
    magnesium|镁|Mg|12|solid|in light alloys|制造轻质合金
    aluminium|铝|Al|13|solid|to make cans and aircraft|制造易拉罐和飞机
    silicon|硅|Si|14|solid|to make computer chips|制造芯片
    phosphorus|磷|P|15|solid|to make fertiliser|制造化肥
    sulfur|硫|S|16|solid|to make sulfuric acid|制造硫酸
    chlorine|氯|Cl|17|gas|to clean water|给水消毒
    titanium|钛|Ti|22|solid|in strong, light parts|制造又轻又结实的零件
    iron|铁|Fe|26|solid|to make steel|炼钢
    nickel|镍|Ni|28|solid|in stainless steel|制造不锈钢
    copper|铜|Cu|29|solid|to make electric wires|制造电线
    zinc|锌|Zn|30|solid|to protect steel from rust|保护钢铁不生锈
    bromine|溴|Br|35|liquid|to make flame retardants|制造阻燃剂
    silver|银|Ag|47|solid|in jewellery and mirrors|制作首饰和镜子
    tin|锡|Sn|50|solid|in solder|制作焊料
    iodine|碘|I|53|solid|to clean wounds|给伤口消毒
    tungsten|钨|W|74|solid|in very hot lamps|制作灯丝
    platinum|铂|Pt|78|solid|in jewellery and catalysts|制作首饰和催化剂
    gold|金|Au|79|solid|in jewellery|制作首饰
    mercury|汞|Hg|80|liquid|in some thermometers|制作某些温度计
    lead|铅|Pb|82|solid|in car batteries|制造汽车蓄电池
    """
)


def _planets(text: str) -> list[Planet]:
    return [
        Planet(en, zh, order, kind, kind_zh, trait, trait_zh)
        for order, ((en, kind, trait), (zh, kind_zh, trait_zh)) in enumerate(paired_rows(text), start=1)
    ]


PLANETS = _planets(
    """
    Mercury|rocky|It is the smallest planet.
    水星|岩石|它是太阳系中最小的行星。
    Venus|rocky|It is the hottest planet.
    金星|岩石|它是太阳系中最热的行星。
    Earth|rocky|It has one moon.
    地球|岩石|它有一颗卫星，就是月球。
    Mars|rocky|It looks red because of rust.
    火星|岩石|它的表面含有氧化铁，看上去是红色的。
    Jupiter|giant|It is the largest planet.
    木星|巨|它是太阳系中最大的行星。
    Saturn|giant|It has bright rings.
    土星|巨|它有明亮的光环。
    Uranus|giant|It rotates on its side.
    天王星|巨|它几乎是躺着自转的。
    Neptune|giant|It is the farthest planet from the Sun.
    海王星|巨|它是离太阳最远的行星。
    """
)
