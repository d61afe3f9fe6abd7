"""Aligned English and Chinese facts about countries and rivers, which the sample corpus's sentences are made from.

Every row is true on its own and says the same in both languages. Names carry the article they need in a sentence
("the Netherlands"); `capitalised` (phrases.py) serves the beginning of one. Countries whose capital or currency is
changing, or which lie on two continents, are left out, so that every sentence of every template holds.
"""

from typing import NamedTuple

from mindllm_engine.corpus.sample.phrases import paired_rows


class Country(NamedTuple):
    """One country; each field twice, in English and in Chinese."""

    en: str
    zh: str
    capital_en: str
    capital_zh: str
    continent_en: str
    continent_zh: str
    language_en: str  # a language widely spoken there, not always the only one
    language_zh: str
    currency_en: str
    currency_zh: str
    known_for_en: str
    known_for_zh: str


class River(NamedTuple):
    """One river, with a continent and a sea or ocean it flows into."""

    en: str
    zh: str
    continent_en: str
    continent_zh: str
    mouth_en: str
    mouth_zh: str


def _countries(continent_en: str, continent_zh: str, text: str) -> list[Country]:
    countries = []
    for english, chinese in paired_rows(text):
        (en, capital_en, *rest_en), (zh, capital_zh, *rest_zh) = english, chinese
        rest = [field for pair in zip(rest_en, rest_zh, strict=True) for field in pair]
        countries.append(Country(en, zh, capital_en, capital_zh, continent_en, continent_zh, *rest))
    return countries


EUROPE = _countries(
    "Europe",
    "欧洲",
    """
    France|Paris|French|the euro|the Eiffel Tower
    法国|巴黎|法语|欧元|埃菲尔铁塔
    Germany|Berlin|German|the euro|its cars and its castles
    德国|柏林|德语|欧元|汽车和城堡
    Italy|Rome|Italian|the euro|the Colosseum and its pasta
    意大利|罗马|意大利语|欧元|斗兽场和意大利面
    Spain|Madrid|Spanish|the euro|flamenco dancing
    西班牙|马德里|西班牙语|欧元|弗拉门戈舞
    Portugal|Lisbon|Portuguese|the euro|its painted tiles and egg tarts
    葡萄牙|里斯本|葡萄牙语|欧元|彩绘瓷砖和蛋挞
    Greece|Athens|Greek|the euro|its ancient temples
    希腊|雅典|希腊语|欧元|古代神庙
    Austria|Vienna|German|the euro|classical music
    奥地利|维也纳|德语|欧元|古典音乐
    Belgium|Brussels|Dutch|the euro|chocolate and waffles
    比利时|布鲁塞尔|荷兰语|欧元|巧克力和华夫饼
    Ireland|Dublin|English|the euro|its green hills
    爱尔兰|都柏林|英语|欧元|绿色的山丘
    the Netherlands|Amsterdam|Dutch|the euro|windmills and tulips
    荷兰|阿姆斯特丹|荷兰语|欧元|风车和郁金香
    Finland|Helsinki|Finnish|the euro|its many lakes
    芬兰|赫尔辛基|芬兰语|欧元|众多的湖泊
    Estonia|Tallinn|Estonian|the euro|its medieval old town
    爱沙尼亚|塔林|爱沙尼亚语|欧元|中世纪老城
    Sweden|Stockholm|Swedish|the Swedish krona|the Nobel Prize
    瑞典|斯德哥尔摩|瑞典语|瑞典克朗|诺贝尔奖
    Norway|Oslo|Norwegian|the Norwegian krone|its deep fjords
    挪威|奥斯陆|挪威语|挪威克朗|幽深的峡湾
    Denmark|Copenhagen|Danish|the Danish krone|the Little Mermaid statue
    丹麦|哥本哈根|丹麦语|丹麦克朗|小美人鱼雕像
    Iceland|Reykjavik|Icelandic|the Icelandic krona|volcanoes and hot springs
    冰岛|雷克雅未克|冰岛语|冰岛克朗|火山和温泉
    Switzerland|Bern|German|the Swiss franc|watches and the Alps
    瑞士|伯尔尼|德语|瑞士法郎|钟表和阿尔卑斯山
    the United Kingdom|London|English|the pound sterling|Big Ben and afternoon tea
    英国|伦敦|英语|英镑|大本钟和下午茶
    Poland|Warsaw|Polish|the zloty|the music of Chopin
    波兰|华沙|波兰语|兹罗提|肖邦的音乐
    Hungary|Budapest|Hungarian|the forint|its thermal baths
    匈牙利|布达佩斯|匈牙利语|福林|温泉浴场
    the Czech Republic|Prague|Czech|the Czech koruna|glass and old bridges
    捷克|布拉格|捷克语|捷克克朗|玻璃制品和古桥
    Ukraine|Kyiv|Ukrainian|the hryvnia|wheat and sunflowers
    乌克兰|基辅|乌克兰语|格里夫纳|小麦和向日葵
    """,
)

ASIA = _countries(
    "Asia",
    "亚洲",
    """
    China|Beijing|Chinese|the renminbi|the Great Wall
    中国|北京|汉语|人民币|长城
    Japan|Tokyo|Japanese|the yen|Mount Fuji and cherry blossoms
    日本|东京|日语|日元|富士山和樱花
    South Korea|Seoul|Korean|the won|kimchi and pop music
    韩国|首尔|韩语|韩元|泡菜和流行音乐
    Mongolia|Ulaanbaatar|Mongolian|the tugrik|its wide grasslands
    蒙古国|乌兰巴托|蒙古语|图格里克|辽阔的草原
    Vietnam|Hanoi|Vietnamese|the dong|rice noodles and Ha Long Bay
    越南|河内|越南语|越南盾|米粉和下龙湾
    Thailand|Bangkok|Thai|the baht|temples and elephants
    泰国|曼谷|泰语|泰铢|寺庙和大象
    the Philippines|Manila|Filipino|the Philippine peso|its thousands of islands
    菲律宾|马尼拉|菲律宾语|菲律宾比索|数千座岛屿
    Malaysia|Kuala Lumpur|Malay|the ringgit|its twin towers
    马来西亚|吉隆坡|马来语|林吉特|双子塔
    Cambodia|Phnom Penh|Khmer|the riel|the temples of Angkor
    柬埔寨|金边|高棉语|瑞尔|吴哥古迹
    Laos|Vientiane|Lao|the kip|its mountains and waterfalls
    老挝|万象|老挝语|基普|高山和瀑布
    India|New Delhi|Hindi|the Indian rupee|the Taj Mahal
    印度|新德里|印地语|印度卢比|泰姬陵
    Nepal|Kathmandu|Nepali|the Nepalese rupee|the Himalayas
    尼泊尔|加德满都|尼泊尔语|尼泊尔卢比|喜马拉雅山
    Bangladesh|Dhaka|Bengali|the taka|its rivers and rice fields
    孟加拉国|达卡|孟加拉语|塔卡|河流和稻田
    Pakistan|Islamabad|Urdu|the Pakistani rupee|its high mountains
    巴基斯坦|伊斯兰堡|乌尔都语|巴基斯坦卢比|高山
    Iran|Tehran|Persian|the rial|its carpets
    伊朗|德黑兰|波斯语|里亚尔|地毯
    Iraq|Baghdad|Arabic|the Iraqi dinar|the history of Babylon
    伊拉克|巴格达|阿拉伯语|伊拉克第纳尔|古巴比伦的历史
    Jordan|Amman|Arabic|the Jordanian dinar|the ancient city of Petra
    约旦|安曼|阿拉伯语|约旦第纳尔|佩特拉古城
    Saudi Arabia|Riyadh|Arabic|the Saudi riyal|oil and deserts
    沙特阿拉伯|利雅得|阿拉伯语|沙特里亚尔|石油和沙漠
    """,
)

AFRICA = _countries(
    "Africa",
    "非洲",
    """
    Egypt|Cairo|Arabic|the Egyptian pound|the pyramids
    埃及|开罗|阿拉伯语|埃及镑|金字塔
    Morocco|Rabat|Arabic|the Moroccan dirham|its colourful markets
    摩洛哥|拉巴特|阿拉伯语|摩洛哥迪拉姆|色彩缤纷的集市
    Algeria|Algiers|Arabic|the Algerian dinar|the Sahara Desert
    阿尔及利亚|阿尔及尔|阿拉伯语|阿尔及利亚第纳尔|撒哈拉沙漠
    Kenya|Nairobi|Swahili|the Kenyan shilling|its wildlife parks
    肯尼亚|内罗毕|斯瓦希里语|肯尼亚先令|野生动物公园
    Ethiopia|Addis Ababa|Amharic|the birr|its coffee
    埃塞俄比亚|亚的斯亚贝巴|阿姆哈拉语|比尔|咖啡
    Nigeria|Abuja|English|the naira|its films and music
    尼日利亚|阿布贾|英语|奈拉|电影和音乐
    Senegal|Dakar|French|the West African CFA franc|its drummers
    塞内加尔|达喀尔|法语|西非法郎|鼓乐
    """,
)

AMERICAS = _countries(
    "North America",
    "北美洲",
    """
    Canada|Ottawa|English|the Canadian dollar|maple syrup
    加拿大|渥太华|英语|加元|枫糖浆
    the United States|Washington|English|the US dollar|the Statue of Liberty
    美国|华盛顿|英语|美元|自由女神像
    Mexico|Mexico City|Spanish|the Mexican peso|tacos and old pyramids
    墨西哥|墨西哥城|西班牙语|墨西哥比索|玉米卷饼和古老的金字塔
    Cuba|Havana|Spanish|the Cuban peso|its old cars and its music
    古巴|哈瓦那|西班牙语|古巴比索|老爷车和音乐
    """,
) + _countries(
    "South America",
    "南美洲",
    """
    Brazil|Brasilia|Portuguese|the real|football and carnival
    巴西|巴西利亚|葡萄牙语|雷亚尔|足球和狂欢节
    Argentina|Buenos Aires|Spanish|the Argentine peso|the tango
    阿根廷|布宜诺斯艾利斯|西班牙语|阿根廷比索|探戈舞
    Chile|Santiago|Spanish|the Chilean peso|its long coastline
    智利|圣地亚哥|西班牙语|智利比索|漫长的海岸线
    Peru|Lima|Spanish|the sol|the old city of Machu Picchu
    秘鲁|利马|西班牙语|索尔|马丘比丘古城
    Colombia|Bogota|Spanish|the Colombian peso|coffee and emeralds
    哥伦比亚|波哥大|西班牙语|哥伦比亚比索|咖啡和祖母绿
    Uruguay|Montevideo|Spanish|the Uruguayan peso|its beaches and its beef
    乌拉圭|蒙得维的亚|西班牙语|乌拉圭比索|海滩和牛肉
    """,
)

OCEANIA = _countries(
    "Oceania",
    "大洋洲",
    """
    Australia|Canberra|English|the Australian dollar|kangaroos and koalas
    澳大利亚|堪培拉|英语|澳元|袋鼠和考拉
    New Zealand|Wellington|English|the New Zealand dollar|its sheep and its mountains
    新西兰|惠灵顿|英语|新西兰元|绵羊和高山
    Fiji|Suva|English|the Fijian dollar|its coral reefs
    斐济|苏瓦|英语|斐济元|珊瑚礁
    """,
)

COUNTRIES = EUROPE + ASIA + AFRICA + AMERICAS + OCEANIA

RIVERS = [
    River("the Yangtze", "长江", "Asia", "亚洲", "the East China Sea", "东海"),
    River("the Yellow River", "黄河", "Asia", "亚洲", "the Bohai Sea", "渤海"),
    River("the Mekong", "湄公河", "Asia", "亚洲", "the South China Sea", "南海"),
    River("the Ganges", "恒河", "Asia", "亚洲", "the Bay of Bengal", "孟加拉湾"),
    River("the Indus", "印度河", "Asia", "亚洲", "the Arabian Sea", "阿拉伯海"),
    River("the Nile", "尼罗河", "Africa", "非洲", "the Mediterranean Sea", "地中海"),
    River("the Congo", "刚果河", "Africa", "非洲", "the Atlantic Ocean", "大西洋"),
    River("the Zambezi", "赞比西河", "Africa", "非洲", "the Indian Ocean", "印度洋"),
    River("the Danube", "多瑙河", "Europe", "欧洲", "the Black Sea", "黑海"),
    River("the Rhine", "莱茵河", "Europe", "欧洲", "the North Sea", "北海"),
    River("the Volga", "伏尔加河", "Europe", "欧洲", "the Caspian Sea", "里海"),
    River("the Thames", "泰晤士河", "Europe", "欧洲", "the North Sea", "北海"),
    River("the Seine", "塞纳河", "Europe", "欧洲", "the English Channel", "英吉利海峡"),
    River("the Amazon", "亚马孙河", "South America", "南美洲", "the Atlantic Ocean", "大西洋"),
    River("the Orinoco", "奥里诺科河", "South America", "南美洲", "the Atlantic Ocean", "大西洋"),
    River("the Mississippi", "密西西比河", "North America", "北美洲", "the Gulf of Mexico", "墨西哥湾"),
    River("the Mackenzie", "马更些河", "North America", "北美洲", "the Arctic Ocean", "北冰洋"),
]
